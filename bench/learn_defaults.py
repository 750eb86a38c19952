"""Which passes and rates fit an amount of data: holdout losses of one task, from which the defaults of learning come.

    python -m bench.learn_defaults --out bench/results/learn_defaults.json

FROZEN's first task (a LoRA on the bare model) on two domains, drawn with a seed that no reported figure uses, for each
amount of texts, number of passes and learning rate. Stored are the holdout losses before and after, in nats per answer
token, after every trial. Source: ours.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from bench import program
from bench.machine import machine_kind, versions

DOMAINS, SEED, HOLDOUT = ("Medical", "Code"), 4242, 32
PASSES = {16: (2, 4), 64: (2, 4), 256: (1, 2)}  # texts -> epochs
RATES = (1e-3, 2e-3)


def main(arguments: list[str] | None = None) -> int:
    """Run every trial. Raises: SystemExit for a wrong option."""
    options = _parser().parse_args(arguments)
    return program.measure("learn_defaults", options, lambda: _trials(options))


def _trials(options: argparse.Namespace) -> dict[str, Any]:
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.tasks.named import named_task

    figures: dict[str, Any] = {
        "machine": machine_kind("cpu", threads=options.threads),
        "versions": versions("torch", "transformers", "peft"),
        "seed": SEED,
        "holdout": HOLDOUT,
        "trials": [],
    }
    for domain, (texts, passes) in product(options.domains, PASSES.items()):
        sizes = load_protocol("quickstart", [f"train={texts}", f"holdout={HOLDOUT}"])
        task = named_task(sizes, domain, SEED)
        for epochs, rate in product(passes, options.rates):
            trial = {"domain": domain, "texts": texts, "epochs": epochs, "rate": rate}
            figures["trials"].append(trial | _trial(task, epochs, rate, options.threads))
            print(figures["trials"][-1], file=sys.stderr, flush=True)
            if options.out:
                program.store(options.out, figures)
    return figures


def _trial(task: Any, epochs: int, rate: float, threads: int) -> dict[str, float]:
    """The holdout loss before and after so many passes at this rate."""
    from backends.finetune import finetune

    settings = [f"epochs={epochs}", f"lora.learning_rate={rate}", "template=auto", "max_tokens=192", "transfer=true"]
    with tempfile.TemporaryDirectory() as folder:
        found = finetune(
            "quickstart",
            [task],
            "smollm2",
            Path(folder) / "run",
            seeds=[SEED],
            conditions=["frozen"],
            settings=settings,
            threads=threads,
            quiet=True,
        )
    (record,) = found.phases_of("frozen", SEED)
    assert record.before is not None
    return {"before": record.before, "after": record.holdout[task.name], "steps": len(record.losses)}


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("learn_defaults", __doc__)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
