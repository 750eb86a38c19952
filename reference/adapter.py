"""The adapter: configuration, parameters, forward pass and vector-Jacobian product of one layer."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.dtypes import as_float64
from reference.errors import ConfigError, NonFiniteError, ShapeError
from reference.residual_mixing import (
    residual_mixing,
    residual_mixing_vjp,
    squared_norm_bound,
    squared_norm_bound_vjp,
)
from reference.sinkhorn_projection import checked_iterations, sinkhorn_projection, sinkhorn_projection_vjp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter. Clauses: MIX-1, SINK-2. Source: n, r and K are withheld by the paper; the defaults are ours.

    Attributes:
        hidden_size: d, the width of the residual stream.
        streams: n.
        rank: r, the width of one stream; ``streams * rank <= hidden_size``.
        iterations: K, Sinkhorn iterations.
    """

    hidden_size: int
    streams: int = 4
    rank: int = 4
    iterations: int = 20

    def __post_init__(self) -> None:
        for field in ("hidden_size", "streams", "rank"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    field, got=repr(value), allowed="an integer >= 1", remedy="streams=4, rank=4 suit most models"
                )
        checked_iterations(self.iterations)
        if self.streams * self.rank > self.hidden_size:
            raise ConfigError(
                "streams * rank",
                got=f"{self.streams} * {self.rank} = {self.streams * self.rank}",
                allowed=f"at most hidden_size = {self.hidden_size}",
                remedy="lower rank or streams",
            )


class AdapterParameters(NamedTuple):
    """Parameters of one layer, or their gradients: mix_logits S (n, n), gate_logit gamma (), basis A (n, r, d)."""

    mix_logits: Array
    gate_logit: Array
    basis: Array


def adapter_forward(x: ArrayLike, parameters: AdapterParameters, iterations: int = 20) -> Array:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)``; ``alpha = sigmoid(gamma) / kappa(A)``, ``M = sinkhorn(S)``.

    Args:
        x: residual stream, shape (..., d).
        parameters: S (n, n), gamma (), A (n, r, d).
        iterations: K.

    Returns:
        y, shape (..., d), float64, with ``||y|| <= ||x||`` for every x and every parameter value.

    Raises:
        DtypeError: an array is not of floats of 16 bits or more.
        ShapeError: shapes do not fit each other.
        NonFiniteError: a parameter is NaN or infinite. (A non-finite x passes through to y.)
        DegenerateBasisError: A is zero.

    Source: residual adapter and its goal, paper section 3.1 eq. 2; the construction, ours. Clauses: MIX-1..MIX-10.
    """
    tokens, checked = _checked(x, parameters)
    mixing = sinkhorn_projection(checked.mix_logits, iterations)
    return residual_mixing(tokens, mixing, adapter_strength(checked), checked.basis)


class AdapterGradients(NamedTuple):
    """Cotangents of the four inputs of :func:`adapter_forward`."""

    x: Array
    mix_logits: Array
    gate_logit: Array
    basis: Array


def adapter_vjp(
    x: ArrayLike, parameters: AdapterParameters, cotangent: ArrayLike, iterations: int = 20
) -> AdapterGradients:
    """Vector-Jacobian product of :func:`adapter_forward` for x, mix_logits, gate_logit and basis, in closed form.

    ``cotangent`` is dL/dy, shaped as x; axes before the last are summed over for the parameters. The gradient flows
    through M, alpha and kappa alike.

    Clauses: GRAD-1..GRAD-7. Raises: as :func:`adapter_forward`, and ShapeError for ``cotangent``.
    """
    tokens, checked = _checked(x, parameters)
    upstream = as_float64("cotangent", cotangent)
    if upstream.shape != tokens.shape:
        raise ShapeError(
            "cotangent", got=upstream.shape, allowed=f"the shape of x, {tokens.shape}", remedy="pass dL/dy"
        )
    gate, kappa = sigmoid(float(checked.gate_logit)), squared_norm_bound(checked.basis)
    mixing = sinkhorn_projection(checked.mix_logits, iterations)
    grad_x, grad_mixing, grad_strength, grad_basis = residual_mixing_vjp(
        tokens, mixing, gate / kappa, checked.basis, upstream
    )
    grad_kappa = -grad_strength * gate / kappa**2
    # gate * (1 - gate) would cancel to 0 for a large gate_logit; sigmoid(-gamma) keeps its digits.
    grad_gate = grad_strength * gate * sigmoid(-float(checked.gate_logit)) / kappa
    return AdapterGradients(
        x=grad_x,
        mix_logits=sinkhorn_projection_vjp(checked.mix_logits, grad_mixing, iterations),
        gate_logit=np.asarray(grad_gate),
        basis=grad_basis + squared_norm_bound_vjp(checked.basis, grad_kappa),
    )


def adapter_strength(parameters: AdapterParameters) -> float:
    """``alpha = sigmoid(gamma) / kappa(A)``, below ``1 / ||A||_2^2``. Clauses: MIX-5."""
    return sigmoid(float(parameters.gate_logit)) / squared_norm_bound(parameters.basis)


def sigmoid(value: float) -> float:
    """``1 / (1 + exp(-value))`` without overflow."""
    decay = float(np.exp(-abs(value)))
    return 1.0 / (1.0 + decay) if value >= 0 else decay / (1.0 + decay)


def _checked(x: ArrayLike, parameters: AdapterParameters) -> tuple[Array, AdapterParameters]:
    tokens, checked = as_float64("x", x), checked_parameters(parameters)
    d = checked.basis.shape[2]
    if tokens.ndim < 1 or tokens.shape[-1] != d:
        raise ShapeError(
            "x",
            got=tokens.shape,
            allowed=f"(..., {d}), as basis is {checked.basis.shape}",
            remedy="put the hidden axis last",
        )
    return tokens, checked


def checked_parameters(parameters: AdapterParameters) -> AdapterParameters:
    """In float64, gamma of shape (). Raises: DtypeError, ShapeError, NonFiniteError. Clauses: MIX-1, MIX-4, MIX-11."""
    logits, gate, basis = map(as_float64, AdapterParameters._fields, parameters)
    if basis.ndim != 3 or basis.size == 0:
        raise ShapeError("basis", got=basis.shape, allowed="(n, r, d), no axis empty", remedy="pass one layer's basis")
    n = len(basis)
    if logits.shape != (n, n):
        raise ShapeError(
            "mix_logits",
            got=logits.shape,
            allowed=f"({n}, {n}), as basis has {n} streams",
            remedy="pass one layer's logits",
        )
    if gate.size != 1:
        raise ShapeError(
            "gate_logit", got=gate.shape, allowed="a single value", remedy="use one gate per layer, not per stream"
        )
    for field, value in (("gate_logit", gate), ("basis", basis)):
        if not np.isfinite(value).all():
            raise NonFiniteError(
                field, got="NaN or infinity", allowed="finite values only", remedy="restore the last good adapter state"
            )
    return AdapterParameters(logits, gate.reshape(()), basis)
