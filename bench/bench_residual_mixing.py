"""Time and accuracy of the adapter of one layer, n = 4 streams of rank 4, beside a copy of x.

    pytest bench/bench_residual_mixing.py --benchmark-json=FILE.json

float32 on the CPU, bfloat16 on a GPU. The accuracy is that of what the adapter adds, y - x, and of every gradient,
against the float64 reference on the same (rounded) x. Clauses: MIX-2, MIX-10, GRAD-4..GRAD-7.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bench.accuracy import double, relative_error
from bench.machine import require_device
from bench.mixings import MIXINGS, Layer, Mixing, layer_of, mixing_named
from reference.errors import CRMAError
from reference.residual_mixing import residual_mixing as reference_mixing
from reference.residual_mixing import residual_mixing_vjp

ON_CPU = [(1, 576), (448, 576), (2048, 576), (512, 4096)]  # a decoded token, the quickstart's batch, longer, wider
ON_GPU = [(1, 4096), (2048, 576), (2048, 4096), (8192, 4096)]
contenders = pytest.mark.parametrize("contender", MIXINGS)
Timed = Callable[[Callable[[], object]], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = require_device(metafunc.config.getoption("--bench-device"))
    metafunc.parametrize(("tokens", "hidden_size"), ON_GPU if device == "cuda" else ON_CPU)


def _setting(contender: str, tokens: int, hidden_size: int, device: str) -> tuple[Mixing, Any, Layer]:
    try:
        mix = mixing_named(contender, device)
    except CRMAError as error:
        pytest.skip(str(error))
    layer = layer_of(hidden_size, device, gate_logit=0.0)  # an open gate, so that y - x has digits
    x = torch.randn(tokens, hidden_size, generator=torch.Generator().manual_seed(1))
    return mix, x.to(device, torch.bfloat16 if device == "cuda" else torch.float32), layer


def _describe(benchmark: Any, contender: str, kind: str, x: Any) -> None:
    benchmark.group = f"residual mixing {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}, {kind}"
    benchmark.extra_info.update({"contender": contender, "bytes_of_x": x.numel() * x.element_size()})


@contenders
def test_forward(contender: str, tokens: int, hidden_size: int, device: str, benchmark: Any, timed: Timed) -> None:
    mix, x, layer = _setting(contender, tokens, hidden_size, device)
    _describe(benchmark, contender, "forward", x)
    with torch.no_grad():
        timed(lambda: mix(x, layer))
        y = double(mix(x, layer))
    if contender in ("copy", "liger-kernel"):
        return
    moved = reference_mixing(double(x), *_doubles(layer)) - double(x)
    benchmark.extra_info["moved_error"] = error = relative_error(y - double(x), moved)
    if x.dtype == torch.float32:  # in bfloat16 y itself is rounded to 3 digits
        assert error <= 1e-5


@contenders
def test_forward_and_backward(
    contender: str, tokens: int, hidden_size: int, device: str, benchmark: Any, timed: Timed
) -> None:
    mix, x, layer = _setting(contender, tokens, hidden_size, device)
    _describe(benchmark, contender, "forward+backward", x)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    leaves = [x, layer.mixing, layer.strength, layer.basis]
    if contender == "crma-whole":
        leaves = [x, layer.mix_logits, layer.gate_logit, layer.basis]
    elif contender in ("copy", "liger-kernel"):
        leaves = [x, layer.mixing][: 1 + (contender != "copy")]
    for leaf in leaves:
        leaf.requires_grad_()

    def work() -> Any:
        return torch.autograd.grad(mix(x, layer), leaves, cotangent)

    timed(work)
    if len(leaves) < 4 or contender == "crma-whole":  # the whole adapter's gradients are conformance's
        return
    truth = residual_mixing_vjp(double(x), *_doubles(layer), double(cotangent))
    errors = [relative_error(double(grad), np.asarray(exact)) for grad, exact in zip(work(), truth, strict=True)]
    names = ("x", "mixing", "strength", "basis")
    benchmark.extra_info.update({f"gradient_error_{name}": error for name, error in zip(names, errors, strict=True)})
    assert max(errors[1:]) <= 1e-3


def _doubles(layer: Layer) -> tuple[Any, float, Any]:
    return double(layer.mixing), layer.strength.item(), double(layer.basis)
