"""Measured copy bandwidth of a GPU, and the share of it that the adapter's kernels reach.

    python -m bench.copy_bandwidth --out FILE.json                    # needs a GPU
    python -m bench.copy_bandwidth --device cpu --kernels plain       # the same arithmetic on the CPU, for a try

Bytes are counted as they must move at least: forward reads x and writes y; backward reads x and dL/dy and writes dL/dx.
For backward the share is also given with one read and one write counted. Several tensors are used in turn, so that no
cache still holds the last one. Targets at 8192 x 4096 bfloat16: forward 80%, backward 65%.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import program
from bench.cuda_graph import event_seconds, gpu_seconds
from bench.machine import machine_kind, require_device, versions
from bench.mixings import Mixing, layer_of, mixing_named
from bench.training_step import seconds
from reference.errors import ConfigError

COMMAND = "python -m bench.copy_bandwidth"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COPIES = 4


def copy_bandwidth(device: str, total_bytes: int) -> float:
    """Bytes per second, read and written counted, of copying one tensor of ``total_bytes`` onto another."""
    source = torch.empty(total_bytes, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * total_bytes / _seconds(device, lambda: target.copy_(source), 20)


def adapter_shares(
    mix: Mixing, tokens: int, hidden_size: int, dtype: torch.dtype, device: str, bandwidth: float
) -> dict[str, float]:
    """Seconds of forward and backward, and bytes that must move over what a copy moves in that time."""
    layer = layer_of(hidden_size, device)
    inputs = [torch.randn(tokens, hidden_size, device=device).to(dtype).requires_grad_() for _ in range(COPIES)]
    size = inputs[0].numel() * inputs[0].element_size()
    leaves = [layer.mixing.requires_grad_(), layer.strength.requires_grad_(), layer.basis.requires_grad_()]
    cotangent = torch.randn(tokens, hidden_size, device=device).to(dtype)

    def ahead() -> list[Tensor]:
        return [mix(x, layer) for x in inputs]

    def ahead_and_back() -> list[tuple[Tensor, ...]]:
        # All of the one, then all of the other: x is not in the cache any more when backward reads it.
        return [torch.autograd.grad(y, [x, *leaves], cotangent) for x, y in zip(inputs, ahead(), strict=True)]

    with torch.no_grad():
        forward = _seconds(device, ahead, 20) / COPIES
    backward = _seconds(device, ahead_and_back, 20) / COPIES - forward
    return {
        "forward_seconds": forward,
        "forward_share": 2 * size / forward / bandwidth,
        "backward_seconds": backward,
        "backward_share": 3 * size / backward / bandwidth,
        "backward_share_one_read_one_write": 2 * size / backward / bandwidth,
    }


def _seconds(device: str, work: Callable[[], object], calls: int) -> float:
    if device == "cuda":
        return gpu_seconds(work, calls) or event_seconds(work, calls)
    work()
    return statistics.median(seconds(work) for _ in range(calls))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = program.parser("copy_bandwidth", __doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--kernels", default="triton", choices=("triton", "plain"))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--copy-mib", type=int, default=1024, help="size of the copied tensor (default: %(default)s)")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures as JSON values. Raises: DeviceUnavailableError, MissingPackageError, ConfigError."""
    device = require_device(options.device, COMMAND)
    if min(options.tokens, options.copy_mib) < 1:
        raise ConfigError("--tokens, --copy-mib", got="0 or less", allowed="at least 1", remedy="leave them out")
    torch.set_num_threads(1)
    mix = mixing_named("crma-triton" if options.kernels == "triton" else "crma", device)
    bandwidth = copy_bandwidth(device, options.copy_mib * 2**20)
    shares = adapter_shares(mix, options.tokens, options.hidden_size, DTYPES[options.dtype], device, bandwidth)
    chosen = {key: getattr(options, key) for key in ("kernels", "tokens", "hidden_size", "dtype")}
    kind = {"machine": machine_kind(device), "versions": versions()}
    return kind | chosen | {"copy_bytes_per_second": bandwidth} | shares


def _text(result: dict[str, Any]) -> str:
    return (
        f"copy: {result['copy_bytes_per_second'] / 1e9:.1f} GB/s\n"
        f"forward: {1e6 * result['forward_seconds']:.1f} us, {100 * result['forward_share']:.1f}% of it (target 80%)\n"
        f"backward: {1e6 * result['backward_seconds']:.1f} us, {100 * result['backward_share']:.1f}% of it "
        f"(target 65%); {100 * result['backward_share_one_read_one_write']:.1f}% with one read and one write counted"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    options = parsed(arguments)
    return program.measure("copy_bandwidth", options, partial(measure, options), _text)


if __name__ == "__main__":
    raise SystemExit(main())
