"""Whole fine-tuning step of LoRA + CRMA over LoRA alone: time, peak memory, and decoding of one token.

    python -m bench.bench_training_step --model smollm2 --out FILE.json
    python -m bench.bench_training_step --model mistral-7b --device cuda --precision bfloat16 --batch 1 --tokens 2048

Both sides are trained by the engine of ``crma finetune``, as FROZEN and MODULAR. Peak memory is the median of three
processes for each side, from the moment the model is loaded. As a pytest module it times the tiny model, and SmolLM2
where its packages are installed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest

from bench import program
from bench.machine import machine_kind, require_device, versions
from bench.memory import peak_in_own_process
from bench.training_step import WARMUP, Setting, Side, alternated, peak, seconds
from reference.errors import CRMAError

GPU_COMMAND = (
    "python -m bench.bench_training_step --model mistral-7b --device cuda --precision bfloat16 --batch 1 --tokens 2048"
)
PROCESSES = 3
NAMES = ("lora", "lora_crma")
SIDES = ("lora", "lora+crma")


@pytest.mark.parametrize("model", ["tiny", pytest.param("smollm2", marks=pytest.mark.needs_model)])
def test_step_by_the_engine(model: str, device: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Each round times a step of LoRA + CRMA, right after one of LoRA alone."""
    pytest.importorskip("peft", reason="pip install 'crma[finetune]'")
    try:
        alone, both = (Side(Setting(model, device), crma=crma) for crma in (False, True))
    except CRMAError as error:
        pytest.skip(str(error))
    losses = [(alone.step(), both.step()) for _ in range(WARMUP)]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=0.05)  # near identity at the start
    assert losses[-1][1] < losses[0][1]  # and it learns
    clock = getattr(time, pytestconfig.getoption("--benchmark-timer").rpartition(".")[2])  # one clock for both sides
    benchmark.group, alone_times = f"training step, {model}", []
    rounds = 10 if model == "tiny" else 5
    benchmark.pedantic(both.step, setup=lambda: alone_times.append(seconds(alone.step, clock)), rounds=rounds)
    median = statistics.median(alone_times)
    ratio = benchmark.stats.stats.median / median
    benchmark.extra_info.update({"contender": "lora+crma", "lora_alone_median": median, "ratio": ratio})


@pytest.mark.parametrize("sizes", [(1, 2048)], ids=["1x2048"])
def test_training_step_of_7b(sizes: tuple[int, int], device: str, benchmark: Any) -> None:
    """On a GPU alone; the figures to keep are those of the command."""
    if device != "cuda":
        pytest.skip(f"device: got {device}; allowed: cuda. Try: {GPU_COMMAND}")
    sides = [Side(Setting("mistral-7b", device, "bfloat16", *sizes), crma=crma) for crma in (False, True)]
    benchmark.group = "training step, mistral-7b"
    benchmark.extra_info.update({"contender": "lora+crma", **alternated([side.step for side in sides], 5, NAMES)})
    benchmark.pedantic(sides[1].step, rounds=3)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = program.parser("bench_training_step", __doc__)
    parser.epilog = f"On a GPU: {GPU_COMMAND}"
    defaults = Setting()
    parser.add_argument("--model", default=defaults.model, help="tiny, smollm2, mistral-7b or a folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--precision", default=defaults.precision, choices=("float32", "mixed", "bfloat16"))
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="of each example (default: %(default)s)")
    parser.add_argument("--delta", type=float, help="also enforce this displacement budget after each step of CRMA")
    parser.add_argument("--rounds", type=int, default=20, help="a step of each side per round (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=0, metavar="N", help="also time N generations of 64 tokens")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (default: %(default)s)")
    parser.add_argument(program.PEAK_OF, choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1 or options.decode < 0:
        parser.error("--rounds and --threads must be at least 1, --decode at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    options = _parsed(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return program.measure("bench_training_step", options, partial(_measured, options, given), _text)


def _measured(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    options.device = require_device(options.device, GPU_COMMAND)
    setting = Setting(
        options.model, options.device, options.precision, options.batch, options.tokens, delta=options.delta
    )
    if options.peak_of:
        return peak(setting, crma=options.peak_of == SIDES[1])
    # The allocator's luck moves a peak by a percent, so each side is the median of three processes.
    peaks = [
        [peak_in_own_process("bench.bench_training_step", arguments, side) for _ in range(PROCESSES)] for side in SIDES
    ]
    sides = [Side(setting, crma=crma) for crma in (False, True)]
    result = {"setting": asdict(setting), "machine": machine_kind(setting.device), "versions": versions()}
    result["rounds"] = options.rounds
    # Another program on the machine takes time, and hardly any of this one's processor time.
    clock = time.process_time if setting.device == "cpu" else time.perf_counter
    result["step"] = alternated([side.step for side in sides], options.rounds, NAMES, clock)
    if options.decode:
        result["decode"] = alternated([side.decoder() for side in sides], options.decode, NAMES, clock)
    all_bytes = [[one["peak_bytes"] for one in processes] for processes in peaks]
    alone, both = (statistics.median(of_side) for of_side in all_bytes)
    result["memory"] = {"lora_peak_bytes": alone, "lora_crma_peak_bytes": both, "ratio": both / alone}
    result["memory"] |= {"peaks": all_bytes, "since_load": peaks[0][0]["since_load"]}
    return result


def _text(result: dict[str, Any]) -> str:
    setting, memory = result["setting"], result["memory"]
    lines = [f"{setting['model']}, {setting['batch']} x {setting['tokens']} tokens, {setting['precision']}, "]
    lines[0] += f"{result['rounds']} rounds on {', '.join(map(str, result['machine'].values()))}"
    for name in ("step", "decode"):
        if name in result:
            figures = result[name]
            low, high = figures["ratio_quartiles"]
            lines.append(
                f"{name}: LoRA {1e3 * figures['lora_median']:.2f} ms, "
                f"LoRA + CRMA {1e3 * figures['lora_crma_median']:.2f} ms, "
                f"ratio {figures['ratio']:.4f} (quartiles {low:.4f} to {high:.4f}; "
                f"of the fastest {figures['ratio_of_minima']:.4f})"
            )
    lines.append(
        f"peak memory: LoRA {memory['lora_peak_bytes'] / 2**20:.0f} MiB, LoRA + CRMA "
        f"{memory['lora_crma_peak_bytes'] / 2**20:.0f} MiB, ratio {memory['ratio']:.4f}"
    )
    if setting["device"] == "cpu":
        lines.append(f"on a GPU: {GPU_COMMAND} --decode 20")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
