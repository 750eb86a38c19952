"""What ``crma plan`` predicts beside what a short run then takes: parameters, peak memory, seconds an epoch.

    python -m bench.plan_check --model smollm2 --out bench/results/plan_check-smollm2.json
    python -m bench.plan_check --model gemma-2-9b --random-weights full --backend torch-cuda --precision bfloat16

Every condition is measured twice in processes of its own: the three steps that ``crma plan --measure`` takes, and then
one epoch on one task and its evaluation, through the engine; on a CPU once more with a malloc that holds nothing back.
The texts are the specification's.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import program
from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from bench.training_step import job_of, model_folder, seconds, spec_texts

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

    job = _job(options, options.conditions[0])
    protocol, names = job.protocol, job.protocol.conditions
    steps = {name: peak_in_own_process("bench.plan_check", arguments, STEPS + name) for name in names}
    runs = {name: peak_in_own_process("bench.plan_check", arguments, name) for name in names}
    if options.backend.endswith("cpu"):
        os.environ |= TRIMMED  # for the processes to come
        for name in names:
            trimmed = peak_in_own_process("bench.plan_check", arguments, name)
            runs[name]["trimmed_peak_bytes"] = trimmed["peak_bytes"]
    predicted = _predicted(_device(options), job, {name: Rates(**steps[name]) for name in names})
    ratios = {
        name: {key: runs[name][key] / predicted[name][of] for key, of in COMPARED.items() if key in runs[name]}
        for name in names
    }
    return {
        "model": options.model,
        "random_weights": options.random_weights,
        "protocol": protocol.model_dump(mode="json", include=set(_FIELDS)),
        "machine": machine_kind(_device(options)),
        "versions": versions(),
        "load_average": os.getloadavg(),  # a busy machine makes times differ
        "predicted": predicted,
        "measured": runs,
        "measured_over_predicted": ratios,
        "parameters_equal": all(runs[name]["parameters"] == predicted[name]["parameters"] for name in names),
    }


_FIELDS = ("precision", "gradient_checkpointing", "batch_size", "accumulation", "max_tokens", "train", "holdout")


def _predicted(device: str, job: Any, rates: Any) -> dict[str, Any]:
    import psutil  # type: ignore[import-untyped]

    from backends.finetune.plan.duration import epoch_seconds
    from backends.finetune.plan.estimate import Machine, make_plan

    work = _work(job)
    # torch counts its own memory on a GPU; on a CPU the process is counted with its libraries
    libraries = 0.0 if device == "cuda" else float(psutil.Process().memory_info().rss)
    plan = make_plan(job.model, job.protocol, work, Machine(device, libraries=libraries), rates)
    return {
        name: {
            "parameters": {"base": plan.counts.base, **condition.trainable},
            "peak_bytes": condition.peak,
            "by_part": condition.memory,
            "epoch_seconds": epoch_seconds(work[0], rates[name], job.protocol.condition(name), job.protocol),
            "holdout_seconds": work[0].holdout_tokens * rates[name].evaluate,
            "tokens_with_padding": work[0].padded_tokens,
        }
        for name, condition in plan.conditions.items()
    }


def _measured(options: argparse.Namespace, _: Sequence[str]) -> dict[str, Any]:
    """Of one condition: the three steps of ``crma plan --measure``, or one epoch and one evaluation."""
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.plan.measure import measure

    job = _job(options, options.peak_of.removeprefix(STEPS))
    make_engine, _world = engine_factory(options.backend)
    if options.peak_of.startswith(STEPS):
        return measure(job, _work(job), make_engine)._asdict()
    return _run(job, make_engine(job), _device(options))


def _run(job: Any, engine: Any, device: str) -> dict[str, Any]:
    """One epoch and one evaluation, as the session goes through them."""
    from backends.finetune.training.encoded_tasks import EncodedTasks

    encoded = EncodedTasks(job)
    steps = [encoded.batches(0, index, rows) for index, rows in enumerate(encoded.order(0))]
    engine.begin_phase(0, len(steps))
    reset_peak(device)
    taken = [seconds(partial(engine.step, batches, index)) for index, batches in enumerate(steps)]
    evaluated = seconds(lambda: encoded.holdout[0].scores(engine))
    values = engine.model.named_parameters()
    base = sum(value.numel() for key, value in values if ".lora_" not in key and ".crma." not in key)
    return {
        "parameters": {"base": base, **engine.parameter_counts()},
        "peak_bytes": peak_bytes(device),
        "epoch_seconds": sum(taken),
        "holdout_seconds": evaluated,
        "first_step_seconds": taken[0],
        "tokens_per_second": sum(batch.tokens for batches in steps for batch in batches) / sum(taken),
    }


def _device(options: argparse.Namespace) -> str:
    return str(options.backend.partition("-")[2])


def _work(job: Any) -> Any:
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.plan.work import work_of
    from backends.finetune.tasks.encoder import Encoder

    return work_of(Encoder(load_tokenizer(job.model), job.protocol), job.tasks, 0)


def _job(options: argparse.Namespace, condition: str) -> Any:
    """Model, protocol and task of the specification's texts, for one condition."""
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
    return job_of(folder, protocol, condition, [Task("spec", tuple(train), tuple(holdout))])


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
