"""What answering with many task adapters costs: files, swaps, memory, and speed beside the bare model.

    python -m bench.inference --model smollm2 --out FILE.json

LoRA of rank 8 on every linear layer and one CRMA of 4 x 4, as in the quickstart, with random values. Times are medians
with quartiles; sides alternate, so that a drift of the machine meets all of them. Peak memory is measured in a process
of its own each, from the moment the base model is loaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model

from backends.finetune.engines.torch.model import load_base
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.run_adapters import TaskAdapter
from backends.finetune.inference.shared_adapter import attach_shared
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.models.resolve import resolve_model
from backends.finetune.protocols.protocol import Protocol, load_protocol
from backends.torch import attach_crma
from bench import program
from bench.machine import load, machine_kind, versions
from bench.memory import peak_bytes, peak_in_own_process, reset_peak
from bench.training_step import quartiles, seconds
from reference import AdapterConfig

LRU = 2
SIDES = ("bare", "lora", "lora+crma")


class Drawn(NamedTuple):
    """PEFT folders of as many tasks, and the state file of the CRMA that they share."""

    lora: list[Path]
    crma: Path

    @classmethod
    def of(cls, folder: Path, count: int) -> Drawn:
        return cls([folder / f"task-{index}" for index in range(count)], folder / "crma.safetensors")


def draw_adapters(model_path: Path, protocol: Protocol, folder: Path, count: int) -> Drawn:
    """Write ``count`` LoRAs and one CRMA for a model. Each LoRA has values of its own, so that no two share pages."""
    base: Any = load_base(model_path, protocol, torch.device("cpu"))
    crma, lora = protocol.crma, protocol.lora
    width = base.config.get_text_config().hidden_size
    backbone = attach_crma(base, AdapterConfig(width, crma.streams, crma.rank, crma.iterations))
    drawn = Drawn.of(folder, count)
    backbone.save(drawn.crma)
    backbone.detach_from_model()
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules)
    first = folder / "task-0"
    get_peft_model(base, config).save_pretrained(str(first))
    shapes = safetensors.torch.load_file(first / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for own in drawn.lora:
        own.mkdir(exist_ok=True)
        tensors = {name: 0.01 * torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
        safetensors.torch.save_file(tensors, own / "adapter_model.safetensors", {"format": "pt"})
        (own / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
    return drawn


def registry_of(
    model_path: Path, protocol: Protocol, drawn: Drawn, *, crma: bool = True, resident: int | None = None
) -> Any:
    """A registry of these adapters, named by their number."""
    base = load_base(model_path, protocol, torch.device("cpu"))
    shared = attach_shared(base, drawn.crma) if crma else None
    tasks = {str(index): TaskAdapter((path,), drawn.crma if crma else None) for index, path in enumerate(drawn.lora)}
    return AdapterRegistry(base, load_tokenizer(model_path), tasks, shared=shared, resident=resident)


def file_sizes(drawn: Drawn) -> dict[str, int]:
    """Bytes on the disk: of one task's LoRA (weights and configuration), and of the CRMA of all."""
    return {
        "lora_bytes_per_task": sum(file.stat().st_size for file in drawn.lora[0].iterdir()),
        "crma_bytes": drawn.crma.stat().st_size,
    }


def swap_times(
    model_path: Path, protocol: Protocol, drawn: Drawn, counts: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Seconds of ``use(task)`` where so many LoRAs are in memory, and where each comes from its file (page cache)."""
    found: dict[str, Any] = {}
    for count in counts:
        registry = registry_of(model_path, protocol, Drawn(drawn.lora[:count], drawn.crma))
        first = [seconds(partial(registry.use, name)) for name in registry.names]
        tasks = [None, "0"] if count == 1 else [str(index % count) for index in range(0, 7 * rounds, 7)]
        registry.use("0")
        times = [seconds(partial(registry.use, name)) for name in (tasks * rounds)[:rounds]]
        found["to the bare model or back" if count == 1 else f"resident, {count} in memory"] = quartiles(times)
        if count == max(counts):
            found[f"first use, while {count} come into memory"] = quartiles(first)
    registry = registry_of(model_path, protocol, drawn, resident=1)
    names = registry.names[: max(rounds, 2)]
    for name in names[:2]:
        registry.use(name)
    times = [seconds(partial(registry.use, name)) for name in (*names[2:], names[0])]
    found["from the file, 1 in memory"] = quartiles(times)
    return found


def throughput(
    model_path: Path, protocol: Protocol, drawn: Drawn, *, rounds: int, tokens: int, decoded: int
) -> dict[str, Any]:
    """Tokens per second of each side: ``tokens`` of each prompt read in one pass; ``decoded`` more, one by one, with a
    KV cache, each the likeliest."""
    models: dict[str, Any] = {"bare": load_base(model_path, protocol, torch.device("cpu"))}
    for side in SIDES[1:]:
        registry = registry_of(model_path, protocol, Drawn(drawn.lora[:1], drawn.crma), crma=side == "lora+crma")
        registry.use("0")
        models[side] = registry.model
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for batch in (1, 8):
        vocabulary = models["bare"].config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (batch, tokens), generator=generator)
        of_rounds = [
            {side: _read_and_decode(models[side], ids, decoded) for side in (SIDES if index % 2 == 0 else SIDES[::-1])}
            for index in range(rounds + 1)
        ][1:]  # the first one warms up
        for part, name, count in ((0, "read", tokens), (1, "decode", decoded)):
            times = {side: [one[side][part] for one in of_rounds] for side in SIDES}
            found[f"{name}, batch {batch}"] = {
                side: {
                    "tokens_per_second": quartiles([batch * count / value for value in own]),
                    "time_over_bare": quartiles([a / b for a, b in zip(own, times["bare"], strict=True)]),
                }
                for side, own in times.items()
            }
    return found


def _read_and_decode(model: Any, ids: Any, decoded: int) -> tuple[float, float]:
    with torch.inference_mode():
        start = time.perf_counter()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(decoded):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        return middle - start, time.perf_counter() - middle


def peak(model_path: Path, protocol: Protocol, drawn: Drawn, side: str) -> dict[str, Any]:
    """Peak memory in this process, which does nothing else: "bare", "10" LoRAs in memory, or "lru of 100"."""
    ids = torch.arange(32)[None]
    if side == "bare":
        model, names = load_base(model_path, protocol, torch.device("cpu")), []
    else:
        count, resident = int(side.split()[-1]), LRU if side.startswith("lru") else None
        registry = registry_of(model_path, protocol, Drawn(drawn.lora[:count], drawn.crma), resident=resident)
        model, names = registry.model, list(registry.names)
    since_load = reset_peak("cpu")
    with torch.inference_mode():
        for name in names or [None]:
            if name is not None:
                registry.use(name)
            model(input_ids=ids, use_cache=False)
    return {"peak_bytes": peak_bytes("cpu"), "since_load": since_load}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, on adapters in a temporary folder."""
    torch.set_num_threads(options.threads)
    protocol = load_protocol("quickstart")
    model_path = resolve_model(options.model)
    if options.peak_of:
        folder = Path(options.adapters_in)
        return peak(model_path, protocol, Drawn.of(folder, len(list(folder.glob("task-*")))), options.peak_of)
    counts = sorted(set(options.adapters))
    result: dict[str, Any] = {
        "model": model_path.name,
        "machine": machine_kind("cpu"),
        "versions": versions(),
        "rounds": options.rounds,
        "load": f"beside other work: load average {load()} at the start",
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        drawn = draw_adapters(model_path, protocol, folder, counts[-1])
        result["files"] = file_sizes(drawn)
        result["swap_seconds"] = swap_times(model_path, protocol, drawn, counts, options.swaps)
        result["peak_memory_bytes"] = {}
        arguments = ["--model", str(options.model), "--threads", str(options.threads), "--adapters-in", place]
        for side in ("bare", *map(str, counts), f"lru of {counts[-1]}"):
            name = "bare model" if side == "bare" else f"{side} adapters in memory"
            name = f"{LRU} in memory at most, {counts[-1]} used" if side.startswith("lru") else name
            result["peak_memory_bytes"][name] = peak_in_own_process("bench.inference", arguments, side)["peak_bytes"]
        result["throughput"] = throughput(
            model_path, protocol, drawn, rounds=options.rounds, tokens=options.tokens, decoded=options.decode
        )
        result["throughput"]["prompt_tokens"], result["throughput"]["decoded_tokens"] = options.tokens, options.decode
    result["load"] += f", {os.getloadavg()[0]:.1f} at the end"
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    parser = program.parser("inference", __doc__)
    parser.add_argument("--model", default="smollm2", help="smollm2, or a folder")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 10, 100], metavar="N", help="in memory")
    parser.add_argument("--rounds", type=int, default=5, help="of each side (default: %(default)s)")
    parser.add_argument("--swaps", type=int, default=30, help="timed for each figure (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=16, help="tokens after it (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument(program.PEAK_OF, help=argparse.SUPPRESS)
    parser.add_argument("--adapters-in", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.swaps, options.tokens, options.decode, options.threads, *options.adapters) < 1:
        parser.error("numbers must be at least 1")
    return program.measure("inference", options, partial(measured, options))


if __name__ == "__main__":
    raise SystemExit(main())
