"""Training steps at the size of the paper's models: tokens a second, peak memory, CRMA's overhead, the spectral log.

    python -m bench.full_size --backend torch-cuda --out bench/results/full_size-h200.json
    python -m bench.full_size --models tinyllama-1.1b --threads 2 --steps 2 --out bench/results/full_size-cpu.json

For each model LoRA alone (FROZEN) and with CRMA (MODULAR), each in a process of its own: two phases of ``--steps``
steps through the engine of `crma finetune`, with the settings of ``gemma-five-phase`` and full rows of the
specification's text. The weights are random unless ``--weights`` is given, which changes neither time nor memory, and
is in the file; JAX reads weights from files, which those of full size are in none of. Peak memory is the process's on a
CPU, and the framework's own count on a GPU. Source: ours; the models: paper, Table 2.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench import program
from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from bench.training_step import job_of, model_folder, spec_texts
from reference.errors import ConfigError

PROTOCOL = "gemma-five-phase"
CONDITIONS = ("frozen", "modular")
PIECE = 4000  # characters of a text; cut to max_tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure model after model; the file is written anew after each, so that nothing measured is lost. 0 if all could
    be measured, 2 if not.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.random = None if options.weights else options.size
    if options.peak_of is not None:
        return program.measure("full_size", options, lambda: _run(options, *options.peak_of.split(":")))
    return program.run("full_size", lambda: _measure(options, arguments))


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    _check(options)
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "settings": options.settings,
        "random_weights": options.random,
        "backend": options.backend,
        "threads": options.threads,
        "versions": {},
        "machine": {},
        "models": {},
    }
    for model in options.models:
        runs = {name: peak_in_own_process("bench.full_size", arguments, f"{model}:{name}") for name in CONDITIONS}
        for run in runs.values():
            result |= {key: run.pop(key) for key in ("versions", "machine")}  # asked here, JAX would take the GPU
        seconds = [runs[name]["step_seconds_median"] for name in CONDITIONS]
        runs["overhead_of_crma"] = seconds[1] / seconds[0] - 1
        result["models"][model] = runs
        if options.out is None:
            print(json.dumps(result, indent=1))
        else:
            program.store(options.out, result)


def _check(options: argparse.Namespace) -> None:
    """Whatever can be known to be wrong before hours of work."""
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.protocols.supported import check_supported
    from backends.finetune.training.threads import set_up_framework

    if options.steps < 1:
        raise ConfigError("--steps", got=options.steps, allowed="an integer >= 1", remedy="leave it out to take 10")
    if options.backend.startswith("jax-") and options.size == "full" and not options.weights:
        raise ConfigError(
            "--size",
            got=f"full with {options.backend}",
            allowed="reduced, or --weights, with a JAX backend, which reads weights from files",
            remedy="--size reduced, or --weights with the models in $CRMA_MODELS, or --backend torch-cuda",
        )
    protocol = load_protocol(PROTOCOL, options.settings)
    check_supported(
        protocol, map(protocol.condition, CONDITIONS), options.backend, shard=False, random_weights=options.random
    )
    set_up_framework(options.backend, options.threads)
    for model in options.models:
        model_folder(model, options.random)
    if options.out is not None:
        program.check_writable(options.out)


def _run(options: argparse.Namespace, model: str, name: str) -> dict[str, Any]:
    from backends import load_backend
    from backends.finetune.engines.by_name import engine_factory
    from backends.finetune.models.folder import load_tokenizer
    from backends.finetune.protocols.protocol import load_protocol
    from backends.finetune.tasks.encoder import Encoder
    from backends.finetune.training.threads import set_up_framework

    threads = set_up_framework(options.backend, options.threads)
    load_backend(options.backend)  # a missing device is one clear error
    framework, device = options.backend.split("-")
    protocol = load_protocol(PROTOCOL, options.settings)
    folder = model_folder(model, options.random)
    reset_peak(device, framework)
    started = time.perf_counter()
    engine: Any = engine_factory(options.backend)[0](job_of(folder, protocol, name))
    load_seconds = time.perf_counter() - started
    encoder = Encoder(load_tokenizer(folder), protocol)
    examples = encoder.encode(spec_texts(PIECE)[:-1], "spec")  # the last may be short
    size = protocol.batch_size
    phases: list[dict[str, Any]] = []
    seconds, tokens = [], []
    for phase in range(2):
        engine.begin_phase(phase, options.steps)
        losses, spectra = [], []
        for index in range(options.steps):
            first = (phase * options.steps + index) * size
            batch = encoder.batch([[examples[(first + row) % len(examples)]] for row in range(size)])
            started = time.perf_counter()
            report = engine.step([batch], index)
            _wait(engine, options.backend)
            seconds.append(time.perf_counter() - started)
            tokens.append(batch.tokens)
            losses.append(report.loss)
            spectrum = engine.spectrum()
            spectra.append(None if spectrum is None else spectrum._asdict())
        phases.append({"losses": losses, "spectral": spectra})
    return {
        "versions": versions("torch", "triton", *(("jax", "jaxlib", "optax") if framework == "jax" else ())),
        "machine": machine_kind(device, framework, threads),
        "parameters": engine.parameter_counts(),
        "load_seconds": load_seconds,
        "step_seconds": seconds,
        "step_seconds_median": statistics.median(seconds[1:] or seconds),
        "tokens_per_second": sum(tokens[1:] or tokens) / sum(seconds[1:] or seconds),
        "peak_bytes": peak_bytes(device, framework),
        "phases": phases,
    }


def _wait(engine: Any, backend: str) -> None:
    """Until what the step has changed is there; on a CPU, PyTorch's is when the step returns."""
    if backend == "torch-cuda":
        import torch

        torch.cuda.synchronize()
    elif backend.startswith("jax-"):
        import jax

        jax.block_until_ready((engine.lora, engine.crma))


def _parser() -> argparse.ArgumentParser:
    from backends.finetune.models.zoo import ZOO

    parser = program.parser("full_size", __doc__)
    parser.add_argument("--models", nargs="+", default=[name for name in ZOO if name != "saul-7b"], metavar="NAME")
    parser.add_argument("--backend", default="torch-cpu", choices=("torch-cpu", "torch-cuda", "jax-cpu", "jax-cuda"))
    parser.add_argument("--size", choices=("full", "reduced"), default="full", help="of the random weights")
    parser.add_argument("--weights", action="store_true", help="the models' own weights, from folders on this machine")
    parser.add_argument("--steps", type=int, default=10, help="in each of two phases")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    parser.add_argument("--threads", type=int)
    parser.add_argument(program.PEAK_OF, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
