"""What ``crma plan`` predicts beside what a short run then takes: parameters, peak memory, seconds an epoch.

    python -m bench.plan_check --model smollm2 --out bench/results/plan_check-smollm2.json
    python -m bench.plan_check --model gemma-2-9b --random-weights full --backend torch-cuda --precision bfloat16

Every condition is measured twice in processes of its own: the three steps that ``crma plan --measure`` takes, and then
one epoch on one task and its evaluation, through the engine; on a CPU once more with a malloc that holds nothing back.
The texts are the specification's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import program
from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from bench.training_step import make_engine, model_folder, seconds, spec_texts

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
    """Print the comparison as JSON, and write it; 0 if it could be made, 2 if not."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    work = compare if options.peak_of is None else _measured
    return program.measure("plan_check", options, lambda: work(options, arguments))


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


def _measured(options: argparse.Namespace, _: Sequence[str]) -> dict[str, Any]:
    """Of one condition: the three steps of ``crma plan --measure``, or one epoch and one evaluation."""
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.methods.conditions import parse_condition
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.plan.measure import measure
    from backends.finetune.plan.work import work_of
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.tasks.job import Job

    protocol, folder, task = _subject(options)
    encoder, name = Encoder(load_tokenizer(folder), protocol), options.peak_of.removeprefix(STEPS)
    if options.peak_of.startswith(STEPS):
        job = Job(folder, protocol, parse_condition(name), 0)
        return measure(job, work_of(encoder, [task], 0), engine_factory(options.backend)[0])._asdict()
    return _run(encoder, task, make_engine(options.backend, folder, protocol, name), options.backend.partition("-")[2])


def _run(encoder: Any, task: Any, engine: Any, device: str) -> dict[str, Any]:
    """One epoch and one evaluation, as the session goes through them."""
    from backends.finetune.tasks.encoding import evaluation_order, training_order

    protocol = encoder.protocol
    train, holdout = (encoder.encode(part, "spec") for part in (task.train, task.holdout))
    order = training_order([len(example.ids) for example in train], protocol.batch_size, 1, seed=0, phase=0)
    batches = [encoder.batch([[train[index]] for index in indices]) for indices in order]
    steps = [batches[first : first + protocol.accumulation] for first in range(0, len(batches), protocol.accumulation)]
    engine.begin_phase(0, len(steps))
    reset_peak(device)
    taken = [seconds(lambda step=step, index=index: engine.step(step, index)) for index, step in enumerate(steps)]
    held_out = [
        encoder.batch([[holdout[index]] for index in indices])
        for indices in evaluation_order(holdout, protocol.batch_size)
    ]
    evaluated = seconds(lambda: engine.holdout_loss(held_out))
    model = engine.model
    base = sum(value.numel() for key, value in model.named_parameters() if ".lora_" not in key and ".crma." not in key)
    return {
        "parameters": {"base": base, **engine.parameter_counts()},
        "peak_bytes": peak_bytes(device),
        "epoch_seconds": sum(taken),
        "holdout_seconds": evaluated,
        "first_step_seconds": taken[0],
        "tokens_per_second": sum(batch.tokens for batch in batches) / sum(taken),
    }


def _subject(options: argparse.Namespace) -> tuple[Any, Path, Any]:
    """Protocol, model folder, task."""
    from backends import load_backend
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.tasks.task import Task
    from backends.finetune.training.threads import set_up_framework

    set_up_framework(options.backend, options.threads)
    load_backend(options.backend)  # a missing device is one clear error
    overrides = {field: getattr(options, field) for field in _FIELDS if hasattr(options, field)}
    protocol = load_protocol("quickstart", **overrides, conditions=options.conditions)
    folder, pieces = model_folder(options.model, options.random_weights), spec_texts(PIECE)
    train, holdout = pieces[: protocol.train], pieces[protocol.train :][: protocol.holdout]
    return protocol, folder, Task("spec", tuple(train), tuple(holdout))


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("plan_check", __doc__)
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
    parser.add_argument(program.PEAK_OF, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
