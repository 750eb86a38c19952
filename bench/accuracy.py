"""How exact is what was timed? Figures for ``extra_info``, against the float64 reference."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import reference
from bench.projections import ITERATIONS, Projection

Array = NDArray[Any]


def double(tensor: Tensor) -> Array:
    """As a float64 array on the host."""
    return np.asarray(tensor.detach().double().cpu().numpy())


def relative_error(actual: Array, expected: Array) -> float:
    """``||a - e||_2 / ||e||_2`` over all entries; NaN if an entry is."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def note_accuracy(info: dict[str, Any], project: Callable[[Array], Array], logits: Array, wide: Array) -> None:
    """Note :func:`mixing_accuracy` at both deviations of the logits, the wider with ``_sd5``; this project's own has to
    be as exact as the specification asks."""
    info |= mixing_accuracy(project(logits), logits, ITERATIONS)
    of_wide = mixing_accuracy(project(wide), wide, ITERATIONS)
    info |= {f"{key}_sd5": value for key, value in of_wide.items()}
    if info["contender"].startswith("crma"):
        assert max(of_wide["sum_error"], of_wide["norm_excess"]) <= 5e-7
        assert of_wide["difference"] <= 1e-3


def mixing_accuracy(mixing: Array, logits: Array, iterations: int) -> dict[str, float]:
    """Of M: worst |row or column sum - 1|, spectral norm - 1, and largest |M - reference|; NaN where M holds one."""
    truth = reference.sinkhorn_projection(logits, iterations)
    return stochasticity(mixing) | {"difference": float(np.abs(mixing - truth).max())}


def stochasticity(mixing: Array) -> dict[str, float]:
    """Of M: worst |row or column sum - 1|, and spectral norm - 1, NaN where M holds one."""
    sums = np.concatenate([mixing.sum(-1), mixing.sum(-2)])
    finite = bool(np.isfinite(mixing).all())
    return {
        "sum_error": float(np.abs(sums - 1).max()),
        "norm_excess": float(np.linalg.svd(mixing, compute_uv=False).max()) - 1 if finite else float("nan"),
    }


def projection_gradient_error(project: Projection, logits: Tensor, cotangent: Tensor, iterations: int) -> float:
    """Relative error of dL/dS over the batch."""
    leaf = logits.detach().requires_grad_()
    (grad,) = torch.autograd.grad(project(leaf), leaf, cotangent)
    truth = reference.sinkhorn_projection_vjp(double(logits), double(cotangent), iterations)
    return relative_error(double(grad), truth)
