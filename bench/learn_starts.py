"""Where the LoRA of an assistant's next task should start: its held-out loss from each start that `crma learn` knows.

    python -m bench.learn_starts --out bench/results/learn_starts.json

Tasks of invented domains and of real texts are taught one after the other with the defaults of `crma learn`, drawn with
seeds that no reported figure uses; the pools of real texts are small, so that some held-out texts are among those of
other seeds. The assistants of a sequence share their first task. Stored is the loss of every later task on its held-out
texts after its own phase, in nats per answer token. Source: ours.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from backends.finetune.report.labels import percent
from bench import program
from bench.machine import machine_kind, versions
from reference import advantage

SEQUENCES = {
    "invented": ("Fictional-Medicine", "Fictional-Company", "Fictional-Law"),
    "real": ("Medical", "Legal", "Financial", "Code"),
}
SEEDS, ROWS, HOLDOUT = (41, 43), 108, 96  # of the rows a tenth is the decision split
#: name -> start, and further settings
STARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fresh": ("fresh", ()),
    "last": ("last", ()),
    "nearest": ("nearest", ()),
    **{f"distilled, λ = {strength}": ("distilled", (f"distilled.strength={strength}",)) for strength in (0.1, 0.3, 1)},
}


def main(arguments: list[str] | None = None) -> int:
    """Teach every sequence from every start. Raises: SystemExit for a wrong option."""
    options = _parser().parse_args(arguments)
    return program.measure(
        "learn_starts", options, lambda: _taught(options), lambda figures: program.markdown(rows(figures))
    )


def rows(figures: Mapping[str, Any]) -> Iterator[list[str]]:
    """Of each later task and start the mean loss over seeds, and how far it is below a fresh LoRA's."""
    yield ["task", "examples", "start", "loss, nats", "below fresh"]
    losses: dict[tuple[str, str], list[float]] = {}
    for entry in figures["taught"]:
        losses.setdefault((entry["task"], entry["start"]), []).append(entry["loss"])
    for (task, start), found in losses.items():
        mean, fresh = fmean(found), losses.get((task, "fresh"))
        gain = "" if start == "fresh" or fresh is None else f"{percent(100 * advantage(fmean(fresh), mean))}%"
        yield [task, str(figures["rows"]), start, f"{mean:.3f}", gain]


def _taught(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "machine": machine_kind("cpu", threads=options.threads),
        "versions": versions("torch", "transformers", "peft"),
        "model": "smollm2",
        "rows": options.rows,
        "holdout": options.holdout,
        "taught": [],
    }

    def store(entry: dict[str, Any]) -> None:
        figures["taught"].append(entry)
        print(entry, file=sys.stderr, flush=True)
        if options.out:
            program.store(options.out, figures)

    for seed, name in product(options.seeds, options.sequences):
        with tempfile.TemporaryDirectory() as folder:
            _teach_sequence(Path(folder), name, seed, options, store)
    return figures


def _teach_sequence(
    folder: Path, sequence: str, seed: int, options: argparse.Namespace, store: Callable[[dict[str, Any]], None]
) -> None:
    from backends.finetune.learning.learn import learn
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.tasks.named import named_task

    sizes = load_protocol("quickstart", [f"train={options.rows}", f"holdout={options.holdout}"])
    first, *later = SEQUENCES[sequence]
    for name in (first, *later):
        task = named_task(sizes, name, seed)
        for side, examples in (("train", task.train), ("holdout", task.holdout)):
            lines = [json.dumps({"prompt": each.prompt, "response": each.response}) + "\n" for each in examples]
            (folder / f"{name}-{side}.jsonl").write_text("".join(lines), encoding="utf-8")

    def teach(into: Path, name: str, **given: Any) -> float:
        files = [folder / f"{name}-{side}.jsonl" for side in ("train", "holdout")]
        common: dict[str, Any] = {"check": "none", "threads": options.threads, "answers": 0, "quiet": True}
        found = learn(files[0], into, model="smollm2", name=name, holdout=files[1], **common, **given)
        return found.learned[-1].own.loss

    teach(folder / "first", first)
    for label in options.starts:
        start, settings = STARTS[label]
        shutil.copytree(folder / "first", folder / "assistant")
        for name in later:
            loss = teach(folder / "assistant", name, start=start, settings=settings)
            store({"sequence": sequence, "seed": seed, "start": label, "task": name, "loss": loss})
        shutil.rmtree(folder / "assistant")


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("learn_starts", __doc__)
    parser.add_argument("--sequences", nargs="+", choices=SEQUENCES, default=list(SEQUENCES))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--rows", type=int, default=ROWS, help="examples a task, of which some only decide")
    parser.add_argument("--holdout", type=int, default=HOLDOUT, help="held-out texts a task")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
