"""Data displacement: how much a change of a layer moves the tokens that earlier tasks had, and a budget for it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.adapter import AdapterParameters, adapter_strength
from reference.displacement_budget import check_budget, checked_states, last_inside
from reference.dtypes import as_float64
from reference.errors import ConfigError, NonFiniteError, ShapeError
from reference.sinkhorn_projection import sinkhorn_projection

Array = NDArray[np.float64]

#: How far a moment may be from symmetric and positive semidefinite, in units of its trace: rounding of float32.
MOMENT_ROUNDING = 1e-6


class StreamMoment(NamedTuple):
    """``total``: sum over tokens of ``z z^T / ||x||^2``, (n r, n r); ``tokens``: how many tokens. Clause: DATA-1."""

    total: Array
    tokens: int

    def joined(self, other: StreamMoment) -> StreamMoment:
        """The moment of the tokens of both. Clause: DATA-1."""
        return StreamMoment(self.total + other.total, self.tokens + other.tokens)


def stream_moment(x: ArrayLike, basis: ArrayLike) -> StreamMoment:
    """``sum_x z z^T / ||x||^2`` with ``z = A x``, and the number of tokens; a token of zeros adds 0 to the sum.

    Args:
        x: residual stream of the tokens that count, shape (..., d).
        basis: A, shape (n, r, d).

    Returns:
        (total, tokens): (n r, n r) in float64, without a unit, with a trace of at most ``tokens ||A||_2^2``.

    Raises:
        DtypeError: an array is not of floats. ShapeError: the shapes do not fit. NonFiniteError: NaN or infinity.

    Clauses: DATA-1.
    """
    tokens, directions = as_float64("x", x), as_float64("basis", basis)
    if directions.ndim != 3 or tokens.shape[-1:] != directions.shape[2:]:
        raise ShapeError(
            "x",
            got=f"{tokens.shape} with basis {directions.shape}",
            allowed="(..., d) with (n, r, d)",
            remedy="put the hidden axis last, and pass one layer's basis",
        )
    for field, values in (("x", tokens), ("basis", directions)):
        _require_finite(field, values)
    flat = tokens.reshape(-1, tokens.shape[-1])
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    streams = flat / np.where(norms > 0, norms, 1.0) @ directions.reshape(-1, directions.shape[2]).T
    return StreamMoment(streams.T @ streams, len(flat))


def data_displacement(
    anchor: AdapterParameters, parameters: AdapterParameters, moment: StreamMoment, iterations: int = 20
) -> float:
    """Root mean square of ``||G x - G_anchor x|| / ||x||`` over the tokens of ``moment``, at most the displacement.

    ``sqrt trace((D (x) I)^T A A^T (D (x) I) C)``, ``D = alpha (M - I) - alpha_1 (M_1 - I)``, ``C = total / tokens``.

    Args:
        anchor, parameters: two states of one layer with the same basis, bit for bit: S (n, n), gamma (), A (n, r, d).
        moment: of the tokens, with that basis.
        iterations: K.

    Raises:
        ConfigError: the bases differ, or the moment is no moment. ShapeError: sizes do not fit.
        NonFiniteError: a value is NaN or infinite. DegenerateBasisError: A is zero.

    Clauses: DATA-2, DATA-4, DATA-5.
    """
    start, end = _checked_states(anchor, parameters)
    return _data_displacement(start, end, checked_moment(moment, start), iterations)


def limit_data_displacement(
    anchor: AdapterParameters, parameters: AdapterParameters, moment: StreamMoment, epsilon: float, iterations: int = 20
) -> tuple[AdapterParameters, float]:
    """``theta_t = anchor + t (parameters - anchor)`` with a data displacement of at most ``epsilon``, and t.

    As ``limit_displacement``, with the data displacement in the place of the displacement; the basis stays as it is.

    Args:
        anchor, parameters, moment, iterations: as in :func:`data_displacement`.
        epsilon: largest root mean square of the relative change, > 0; infinity limits nothing.

    Returns:
        (limited, t): S (n, n), gamma (), A (n, r, d) in float64, and t in [0, 1].

    Raises: ConfigError for an ``epsilon`` that is no number > 0, and as :func:`data_displacement`.
    Clauses: DATA-3, DATA-4, DATA-5.
    """
    check_budget("epsilon", epsilon)
    start, end = _checked_states(anchor, parameters)
    mean = checked_moment(moment, start)
    adapter_strength(start)  # refuses A = 0
    limited, fraction = last_inside(
        start, end, lambda state: _data_displacement(start, state, mean, iterations) <= epsilon
    )
    return limited._replace(basis=end.basis), fraction  # -0.0 + 0.0 would be another zero


def checked_moment(moment: StreamMoment, parameters: AdapterParameters) -> Array:
    """C, the mean of ``z z^T / ||x||^2``, (n r, n r). Raises: as :func:`data_displacement`. Clause: DATA-5."""
    total, width = as_float64("moment", moment.total), parameters.basis.shape[0] * parameters.basis.shape[1]
    check_count(moment.tokens)
    if total.shape != (width, width):
        raise ShapeError(
            "moment",
            got=total.shape,
            allowed=f"({width}, {width}), as the basis is {parameters.basis.shape}",
            remedy="take the moment with this layer's basis",
        )
    _require_finite("moment", total)
    slack = MOMENT_ROUNDING * np.trace(total)
    asymmetry, smallest = np.abs(total - total.T).max(), np.linalg.eigvalsh((total + total.T) / 2)[0]
    if not (asymmetry <= slack and smallest >= -slack):
        raise refused_moment("moment", float(asymmetry), float(smallest))
    return total / moment.tokens


def check_count(count: int) -> None:
    """Raise ConfigError unless ``count`` is an integer >= 1. Clause: DATA-5."""
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ConfigError(
            "tokens of the moment", got=repr(count), allowed="an integer >= 1", remedy="take the moment of some tokens"
        )


def refused_moment(field: str, asymmetry: float, smallest: float) -> ConfigError:
    """The error for a matrix that is no sum of squares. Clause: DATA-5."""
    return ConfigError(
        field,
        got=f"entries that differ from their mirror images by {asymmetry:.3g}, and an eigenvalue of {smallest:.3g}",
        allowed="a symmetric positive semidefinite matrix, up to 1e-6 of its trace",
        remedy="take the moment with stream_moment",
    )


def other_basis(where: str = "") -> ConfigError:
    """The error for a basis that is not the anchor's. Clause: DATA-4."""
    return ConfigError(
        "basis",
        got=f"another one than the anchor's{where}",
        allowed="the basis of the anchor, bit for bit",
        remedy="stop training the basis once the anchor is taken; limit_displacement bounds a state with any basis",
    )


def _checked_states(
    anchor: AdapterParameters, parameters: AdapterParameters
) -> tuple[AdapterParameters, AdapterParameters]:
    start, end = checked_states(anchor, parameters)
    if start.basis.tobytes() != end.basis.tobytes():
        raise other_basis()
    return start, end


def _data_displacement(start: AdapterParameters, end: AdapterParameters, mean: Array, iterations: int) -> float:
    r, d = start.basis.shape[1:]
    flat = start.basis.reshape(-1, d)
    difference = np.kron(_mixer(end, iterations) - _mixer(start, iterations), np.eye(r))
    squared = np.trace(difference.T @ (flat @ flat.T) @ difference @ mean)
    return float(np.sqrt(max(squared, 0.0)))  # rounding may leave a negative number where it is 0


def _mixer(parameters: AdapterParameters, iterations: int) -> Array:
    """``alpha (M - I)``, (n, n)."""
    mixing = sinkhorn_projection(parameters.mix_logits, iterations)
    return adapter_strength(parameters) * (mixing - np.eye(len(mixing)))


def _require_finite(field: str, values: Array) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(
            field, got="NaN or infinity", allowed="finite values only", remedy="restore the last good adapter state"
        )
