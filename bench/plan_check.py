"""What ``crma plan`` predicts beside what a short run then takes: parameters, peak memory, seconds an epoch.

    python -m bench.plan_check --model smollm2 --out bench/results/plan_check-smollm2.json
    python -m bench.plan_check --model gemma-2-9b --random-weights full --backend torch-cuda --precision bfloat16

Every condition is measured twice in processes of its own: the three steps that ``crma plan --measure`` takes, and then
one epoch on one task and its evaluation, through the engine; on a CPU once more with a malloc that holds nothing back.
The texts are the specification's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.atomic import atomic_write
from backends.files import printable
from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from reference.errors import CRMAError

PIECE = 1200  # characters of a text
STEPS = "steps of "
COMPARED = {  # measured -> predicted
    "peak_bytes": "peak_bytes",
    "trimmed_peak_bytes": "peak_bytes",
    "epoch_seconds": "epoch_seconds",
    "holdout_seconds": "holdout_seconds",
}
#: malloc gives freed memory back at once, so that the peak is what is in use rather than what is held
TRIMMED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison as JSON, or write it; 0 if it could be made, 2 if not."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    try:
        if options.peak_of is not None:
            print(json.dumps(_measured(options)))
            return 0
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=options.out.parent).close()  # it can be written to, before minutes of work
        text = json.dumps(compare(options, arguments), indent=2)
        if options.out is None:
            print(text)
        else:
            atomic_write(options.out, text.encode() + b"\n")
    except CRMAError as error:
        print(f"plan_check: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"plan_check: {printable(error)}. Check --out, its permissions and the free disk space.", file=sys.stderr)
        return 2
    return 0


def compare(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Predicted and measured, and measured over predicted."""
    from backends.finetune.plan.duration import Rates

    protocol, folder, task = _subject(options)
    names = protocol.conditions
    steps = {name: peak_in_own_process("bench.plan_check", arguments, STEPS + name) for name in names}
    runs = {name: peak_in_own_process("bench.plan_check", arguments, name) for name in names}
    if options.backend.endswith("cpu"):
        os.environ |= TRIMMED  # for the processes to come
        for name in names:
            trimmed = peak_in_own_process("bench.plan_check", arguments, name)
            runs[name]["trimmed_peak_bytes"] = trimmed["peak_bytes"]
    predicted = _predicted(options, protocol, folder, task, {name: Rates(**steps[name]) for name in names})
    ratios = {
        name: {key: runs[name][key] / predicted[name][of] for key, of in COMPARED.items() if key in runs[name]}
        for name in names
    }
    return {
        "model": options.model,
        "random_weights": options.random_weights,
        "protocol": protocol.model_dump(mode="json", include=set(_FIELDS)),
        "machine": machine_kind(options.backend.partition("-")[2]),
        "versions": versions(),
        "load_average": os.getloadavg(),  # a busy machine makes times differ
        "predicted": predicted,
        "measured": runs,
        "measured_over_predicted": ratios,
        "parameters_equal": all(runs[name]["parameters"] == predicted[name]["parameters"] for name in names),
    }


_FIELDS = ("precision", "gradient_checkpointing", "batch_size", "accumulation", "max_tokens", "train", "holdout")


def _predicted(options: argparse.Namespace, protocol: Any, folder: Path, task: Any, rates: Any) -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped]

    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.plan.duration import epoch_seconds
    from backends.finetune.plan.estimate import Machine, make_plan
    from backends.finetune.plan.work import work_of
    from backends.finetune.tasks.encoder import Encoder

    work = work_of(Encoder(load_tokenizer(folder), protocol), [task], 0)
    device = options.backend.partition("-")[2]
    # torch counts its own memory on a GPU; on a CPU the process is counted with its libraries
    libraries = 0.0 if device == "cuda" else float(psutil.Process().memory_info().rss)
    plan = make_plan(folder, protocol, work, Machine(device, libraries=libraries), rates)
    return {
        name: {
            "parameters": {"base": plan.counts.base, **condition.trainable},
            "peak_bytes": condition.peak,
            "by_part": condition.memory,
            "epoch_seconds": epoch_seconds(work[0], rates[name], parse_condition(name), protocol),
            "holdout_seconds": work[0].holdout_tokens * rates[name].evaluate,
            "tokens_with_padding": work[0].padded_tokens,
        }
        for name, condition in plan.conditions.items()
    }


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.plan.measure import measure
    from backends.finetune.plan.work import work_of
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.job import Job

    protocol, folder, task = _subject(options)
    name = options.peak_of.removeprefix(STEPS)
    make_engine, _ = engine_factory(options.backend)
    if options.peak_of.startswith(STEPS):
        from backends.finetune.models.folder import load_tokenizer

        work = work_of(Encoder(load_tokenizer(folder), protocol), [task], 0)
        return measure(Job(folder, protocol, parse_condition(name), 0), work, make_engine)._asdict()
    return _run(protocol, folder, task, make_engine, name, options.backend.partition("-")[2])


def _run(protocol: Any, folder: Path, task: Any, make_engine: Any, name: str, device: str) -> dict[str, Any]:
    """One epoch and one evaluation, as the session goes through them."""
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.encoding import evaluation_order, training_order
    from backends.finetune.tasks.job import Job

    engine = make_engine(Job(folder, protocol, parse_condition(name), 0))
    encoder = Encoder(load_tokenizer(folder), protocol)
    train, holdout = (encoder.encode(part, "spec") for part in (task.train, task.holdout))
    order = training_order([len(example.ids) for example in train], protocol.batch_size, 1, seed=0, phase=0)
    batches = [encoder.batch([[train[index]] for index in indices]) for indices in order]
    steps = [batches[first : first + protocol.accumulation] for first in range(0, len(batches), protocol.accumulation)]
    engine.begin_phase(0, len(steps))
    reset_peak(device)
    seconds = []
    for index, of_step in enumerate(steps):
        started = time.perf_counter()
        engine.step(of_step, index)
        seconds.append(time.perf_counter() - started)
    held_out = [
        encoder.batch([[holdout[index]] for index in indices])
        for indices in evaluation_order(holdout, protocol.batch_size)
    ]
    started = time.perf_counter()
    engine.holdout_loss(held_out)
    evaluated = time.perf_counter() - started
    model = engine.model
    base = sum(value.numel() for key, value in model.named_parameters() if ".lora_" not in key and ".crma." not in key)
    return {
        "parameters": {"base": base, **engine.parameter_counts()},
        "peak_bytes": peak_bytes(device),
        "epoch_seconds": sum(seconds),
        "holdout_seconds": evaluated,
        "first_step_seconds": seconds[0],
        "tokens_per_second": sum(batch.tokens for batch in batches) / sum(seconds),
    }


def _subject(options: argparse.Namespace) -> tuple[Any, Path, Any]:
    """Protocol, model folder, task."""
    from backends import load_backend
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.models.resolve import resolve_model
    from backends.finetune.models.tokenizer import training_text
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.tasks.task import Example, Task
    from backends.finetune.training.threads import set_up_framework

    set_up_framework(options.backend, options.threads)
    load_backend(options.backend)  # a missing device is one clear error
    overrides = {field: getattr(options, field) for field in _FIELDS if hasattr(options, field)}
    protocol = load_protocol("quickstart", **overrides, conditions=options.conditions)
    if options.random_weights is None:
        folder = resolve_model(options.model)
    else:
        folder = random_model_folder(options.model, size=options.random_weights)
    text = "\n".join(training_text())
    pieces = [Example("", text[first : first + PIECE]) for first in range(0, len(text), PIECE)]
    train, holdout = pieces[: protocol.train], pieces[protocol.train :][: protocol.holdout]
    return protocol, folder, Task("spec", tuple(train), tuple(holdout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.plan_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2", help="smollm2, a folder, or with --random-weights one of the zoo")
    parser.add_argument("--random-weights", choices=("full", "reduced"))
    parser.add_argument("--backend", default="torch-cpu", choices=("torch-cpu", "torch-cuda"))
    parser.add_argument("--conditions", nargs="+", default=["frozen", "modular"])
    parser.add_argument("--precision", choices=("float32", "mixed", "bfloat16"), default="float32")
    parser.add_argument("--gradient-checkpointing", action="store_true", default=None)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--train", type=int)
    parser.add_argument("--holdout", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
