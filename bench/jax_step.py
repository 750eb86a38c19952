"""A whole fine-tuning step in JAX beside PyTorch, by the engines of ``crma finetune``: time, compilation, peak memory.

    python -m bench.jax_step --model smollm2 --out FILE.json

LoRA on every projection and CRMA, on the same batch in both; rounds alternate. Peak memory is that of a process for
each, from the moment the model is loaded. Source: ours.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import program
from bench.machine import machine_kind, versions
from bench.memory import peak_in_own_process
from bench.training_step import Setting, Side, alternated, peak

FRAMEWORKS = ("torch", "jax")


def _measured(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    from backends.finetune.training.threads import set_up_framework

    for framework in FRAMEWORKS:
        set_up_framework(f"{framework}-cpu", options.threads)
    setting = Setting(options.model, "cpu", options.precision, options.batch, options.tokens)
    if options.peak_of:
        return peak(setting, framework=options.peak_of.removesuffix("-cpu"))
    backends = [f"{framework}-cpu" for framework in FRAMEWORKS]
    peaks = {backend: peak_in_own_process("bench.jax_step", arguments, backend) for backend in backends}
    sides = [Side(setting, framework=framework) for framework in FRAMEWORKS]
    first = {}
    for backend, side in zip(backends, sides, strict=True):
        start = time.perf_counter()
        loss = side.step()
        first[backend] = {"seconds": time.perf_counter() - start, "loss": loss}
    return {
        "setting": {name: getattr(options, name) for name in ("model", "precision", "batch", "tokens")},
        "machine": machine_kind("cpu"),
        "versions": versions("torch", "triton", "jax", "jaxlib", "optax"),
        "rounds": options.rounds,
        "first_step": first,
        "step": alternated([side.step for side in sides], options.rounds, FRAMEWORKS),
        "memory": peaks,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    parser = program.parser("jax_step", __doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2 or a folder (default: %(default)s)")
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed", "bfloat16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=112, help="of each example (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="a step of each per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument(program.PEAK_OF, choices=("torch-cpu", "jax-cpu"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.threads, options.batch) < 1 or options.tokens < 8:
        parser.error("--rounds, --threads and --batch must be at least 1, --tokens at least 8")
    given = sys.argv[1:] if arguments is None else arguments
    return program.measure("jax_step", options, partial(_measured, options, given))


if __name__ == "__main__":
    raise SystemExit(main())
