"""Training steps at the size of the paper's models: tokens a second, peak memory, CRMA's overhead, the spectral log.

    python -m bench.full_size --backend torch-cuda --out bench/results/full_size-h200.json
    python -m bench.full_size --models tinyllama-1.1b --threads 2 --steps 2 --out bench/results/full_size-cpu.json

For each model LoRA alone (FROZEN) and with CRMA (MODULAR), each in a process of its own: two phases of ``--steps``
steps through the engine of `crma finetune`, with the settings of ``gemma-five-phase`` and full rows of the
specification's text. The weights are random unless ``--weights`` is given, which changes neither time nor memory, and
is in the file. Source: ours; the models: paper, Table 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak

PROTOCOL = "gemma-five-phase"
CONDITIONS = ("frozen", "modular")
PIECE = 4000  # characters of a text; cut to max_tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure model after model; the file is written anew after each, so that nothing measured is lost."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    if options.peak_of is not None:
        print(json.dumps(_run(options, *options.peak_of.split(":"))))
        return
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "settings": options.settings,
        "random_weights": None if options.weights else options.size,
        "machine": machine_kind(options.backend.partition("-")[2]),
        "threads": options.threads,
        "versions": versions(),
        "models": {},
    }
    for model in options.models:
        runs = {name: peak_in_own_process("bench.full_size", arguments, f"{model}:{name}") for name in CONDITIONS}
        seconds = [runs[name]["step_seconds_median"] for name in CONDITIONS]
        runs["overhead_of_crma"] = seconds[1] / seconds[0] - 1
        result["models"][model] = runs
        text = json.dumps(result, indent=1) + "\n"
        if options.out is None:
            print(text)
        else:
            options.out.write_text(text, encoding="utf-8")


def _run(options: argparse.Namespace, model: str, name: str) -> dict[str, Any]:
    import torch

    from backends.finetune.base_model import resolve_model
    from backends.finetune.conditions import parse_condition
    from backends.finetune.engines import engine_factory
    from backends.finetune.models import random_model_folder
    from backends.finetune.models.tokenizer import training_text
    from backends.finetune.protocol import load_protocol
    from backends.finetune.tasks import Example
    from backends.finetune.threads import set_up_framework

    set_up_framework(options.backend, options.threads)
    device = options.backend.partition("-")[2]
    protocol = load_protocol(PROTOCOL, options.settings)
    folder = resolve_model(model) if options.weights else random_model_folder(model, size=options.size)
    reset_peak(device)
    started = time.perf_counter()
    engine = engine_factory(options.backend)[0](folder, protocol, parse_condition(name), 0)
    load_seconds = time.perf_counter() - started
    text = "\n".join(training_text())
    pieces = [Example("", text[first : first + PIECE]) for first in range(0, len(text) - PIECE, PIECE)]
    examples = engine.encode(pieces, "spec")
    size = protocol.batch_size
    phases: list[dict[str, Any]] = []
    seconds, tokens = [], []
    for phase in range(2):
        engine.begin_phase(phase, options.steps)
        losses, spectra = [], []
        for index in range(options.steps):
            first = (phase * options.steps + index) * size
            batch = engine.batch([[examples[(first + row) % len(examples)]] for row in range(size)])
            started = time.perf_counter()
            report = engine.step([batch], index)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            tokens.append(batch.tokens)
            losses.append(report.loss)
            spectrum = engine.spectrum()
            spectra.append(None if spectrum is None else spectrum._asdict())
        phases.append({"losses": losses, "spectral": spectra})
    return {
        "parameters": engine.parameter_counts(),
        "load_seconds": load_seconds,
        "step_seconds": seconds,
        "step_seconds_median": statistics.median(seconds[1:] or seconds),
        "tokens_per_second": sum(tokens[1:] or tokens) / sum(seconds[1:] or seconds),
        "peak_bytes": peak_bytes(device),
        "phases": phases,
    }


def _parser() -> argparse.ArgumentParser:
    from backends.finetune.models import ZOO

    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[name for name in ZOO if name != "saul-7b"], metavar="NAME")
    parser.add_argument("--backend", default="torch-cpu", choices=("torch-cpu", "torch-cuda", "jax-cpu", "jax-cuda"))
    parser.add_argument("--size", choices=("full", "reduced"), default="full", help="of the random weights")
    parser.add_argument("--weights", action="store_true", help="the models' own weights, from folders on this machine")
    parser.add_argument("--steps", type=int, default=10, help="in each of two phases")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
