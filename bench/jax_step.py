"""A whole fine-tuning step in JAX beside PyTorch, by the engines of ``crma finetune``: time, compilation, peak memory.

    python -m bench.jax_step --model smollm2 --out FILE.json

LoRA on every projection and CRMA, on the same batch in both; rounds alternate, and the ratio is the median over rounds
of the two neighbouring times. Peak memory is that of a process for each, from the moment the model is loaded. Source:
ours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backends.atomic import atomic_write
from backends.files import printable
from backends.finetune.engines.by_name import engine_factory
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.encoding import EncodedExample, collate
from backends.finetune.tasks.job import Job
from backends.finetune.training.threads import set_up_framework
from bench.bench_training_step import measure
from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from reference.errors import CRMAError

BACKENDS = ("torch-cpu", "jax-cpu")
STEPS = 10_000  # of the schedule: more than are taken
PEAK_STEPS = 3


def stepper(backend: str, options: argparse.Namespace) -> Callable[[], float]:
    """A function that takes one more step on a batch of random tokens, and gives its loss."""
    import numpy as np

    protocol = load_protocol("quickstart").model_copy(
        update={"precision": options.precision, "max_tokens": options.tokens, "batch_size": options.batch}
    )
    engine = engine_factory(backend)[0](Job(resolve_model(options.model), protocol, parse_condition("modular"), 0))
    engine.begin_phase(0, STEPS)
    ids = np.random.default_rng(0).integers(0, 256, (options.batch, options.tokens))
    batch = collate([EncodedExample(tuple(row), 1) for row in ids.tolist()], 0)
    taken = iter(range(STEPS))
    return lambda: engine.step([batch], next(taken)).loss


def _peak(backend: str, options: argparse.Namespace) -> dict[str, Any]:
    step = stepper(backend, options)
    since_load = reset_peak("cpu")
    for _ in range(PEAK_STEPS):
        step()
    return {"peak_bytes": peak_bytes("cpu"), "since_load": since_load}


def _measured(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    for backend in BACKENDS:
        set_up_framework(backend, options.threads)
    if options.peak_of:
        return _peak(options.peak_of, options)
    peaks = {backend: peak_in_own_process("bench.jax_step", arguments, backend) for backend in BACKENDS}
    steps = [stepper(backend, options) for backend in BACKENDS]
    first = []
    for step in steps:
        start = time.perf_counter()
        loss = step()
        first.append({"seconds": time.perf_counter() - start, "loss": loss})
    figures = measure(steps, options.rounds)
    return {
        "setting": {name: getattr(options, name) for name in ("model", "precision", "batch", "tokens")},
        "machine": machine_kind("cpu"),
        "versions": versions() | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax")},
        "rounds": options.rounds,
        "first_step": dict(zip(BACKENDS, first, strict=True)),
        "step": {
            "torch_median": figures["lora_median"],
            "jax_median": figures["lora_crma_median"],
            "ratio": figures["ratio"],
            "ratio_quartiles": figures["ratio_quartiles"],
            "ratio_of_minima": figures["ratio_of_minima"],
        },
        "memory": peaks,
    }


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.jax_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or a folder (default: %(default)s)")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed", "bfloat16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=112, help="of each example (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="a step of each per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--peak-of", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.threads, options.batch) < 1 or options.tokens < 8:
        parser.error("--rounds, --threads and --batch must be at least 1, --tokens at least 8")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    options = _parsed(arguments)
    try:
        result = _measured(options, list(sys.argv[1:] if arguments is None else arguments))
        if options.peak_of is None and options.out:
            atomic_write(options.out, json.dumps(result, indent=2).encode() + b"\n")
    except CRMAError as error:
        print(f"jax_step: {printable(error)}", file=sys.stderr)
        return 2
    print(json.dumps(result) if options.peak_of else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
