"""A short fine-tuning run end to end, and its certificate."""

import tempfile
import time
from pathlib import Path

from bench.gpu.report import Report
from reference.errors import BackendError

_SMALLER = ["train=12", "holdout=6", "canaries=1", "epochs=1", "lora.rank=4"]
_SMALLER += ['orderings="given"', 'quantization="none"']


def finetuning(report: Report) -> None:
    """Three invented domains under three conditions, by a small model with random weights; every promise again."""
    with report.part("run") as figures, tempfile.TemporaryDirectory() as folder:
        from backends.finetune import finetune
        from backends.finetune.certify.certification import certify_run

        started = time.perf_counter()
        out = Path(folder) / "run"
        backend = f"torch-{report.device}"
        results = finetune(
            "fictional",
            model="tinyllama-1.1b",
            out=out,
            settings=_SMALLER,
            backend=backend,
            random_weights="reduced",
            threads=1 if report.small else None,
            quiet=True,
        )
        figures |= {"seconds": time.perf_counter() - started, "phases": len(results.phases)}
        certification = certify_run(out)
        verdicts = [check.verdict for check in certification.checks]
        figures["checks"] = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
        if not certification.passed:
            broken = [f"{each.name}: {each.reason}" for each in certification.checks if each.verdict == "fail"]
            raise BackendError("certificate", got="; ".join(broken), allowed="no check that fails", remedy="see there")
