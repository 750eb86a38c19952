"""Start values of an adapter: near identity through the gate alone, so that every parameter has a gradient."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reference.adapter import AdapterConfig, AdapterParameters
from reference.errors import ConfigError, NonFiniteError, ShapeError

Array = NDArray[np.float64]
GATE_LOGIT = -5.0  # sigmoid 0.0067: 32 layers together shrink no direction by 20% (INIT-4)
MIX_LOGITS_DEVIATION = 0.5  # M well off the identity; at M = I the gradients of gate and basis vanish


def init_parameters(
    config: AdapterConfig,
    seed: int | np.random.Generator,
    *,
    writer: ArrayLike | None = None,
    skip_directions: int = 0,
    gate_logit: float = GATE_LOGIT,
) -> AdapterParameters:
    """Draw the start values of one layer.

    S: normal with standard deviation 0.5. gamma: ``gate_logit``. A: orthonormal rows; without ``writer`` uniformly
    random, with it the leading left singular vectors of that matrix, direction k going to stream ``k mod n``.

    Args:
        config: sizes.
        seed: an integer or a Generator; the same seed gives the same values.
        writer: the matrix that writes into the residual stream in this block, shape (d, m) with ``y = writer @ h``.
        skip_directions: how many leading singular directions of ``writer`` to leave out.
        gate_logit: gamma at the start.

    Returns:
        AdapterParameters: (n, n), (), (n, r, d), float64.

    Raises:
        ShapeError: ``writer`` is not (d, m). ConfigError: ``writer`` has too few directions, or a number is negative.
        NonFiniteError: ``writer`` holds NaN or infinity.

    Source: near identity at start, paper sections 3.3 and 4.2; principal directions, a forum post of its first author;
    the values, ours. Clauses: INIT-1..INIT-4.
    """
    for field, value in (("seed", seed), ("skip_directions", skip_directions)):
        if not isinstance(value, np.random.Generator) and value < 0:
            raise ConfigError(field, got=value, allowed="an integer >= 0", remedy="leave it at 0")
    rng = np.random.default_rng(seed)
    mix_logits = MIX_LOGITS_DEVIATION * rng.standard_normal((config.streams, config.streams))
    width = config.streams * config.rank
    if writer is None:
        rows = _random_orthonormal(rng, width, config.hidden_size)
    else:
        rows = _leading_directions(
            rng, _checked_writer(writer, config, width + skip_directions), width, skip_directions
        )
    dealt = rows.reshape(config.rank, config.streams, config.hidden_size).transpose(1, 0, 2)
    return AdapterParameters(mix_logits, np.asarray(float(gate_logit)), np.ascontiguousarray(dealt))


def _random_orthonormal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    q, r = np.linalg.qr(rng.standard_normal((columns, rows)))
    return (q * np.sign(np.diag(r))).T  # the sign makes the distribution uniform and the result independent of LAPACK


def _leading_directions(rng: np.random.Generator, matrix: Array, count: int, skip: int) -> Array:
    """Randomized SVD (Halko, Martinsson, Tropp 2011, algorithm 4.4 with two power iterations)."""
    sketch = min(count + skip + 10, *matrix.shape)
    range_basis, _ = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], sketch)))
    for _ in range(2):
        corange_basis, _ = np.linalg.qr(matrix.T @ range_basis)
        range_basis, _ = np.linalg.qr(matrix @ corange_basis)
    left, _, _ = np.linalg.svd(range_basis.T @ matrix, full_matrices=False)
    directions = (range_basis @ left[:, skip : skip + count]).T
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return directions * np.sign(largest)  # singular vectors have no sign of their own


def _checked_writer(writer: ArrayLike, config: AdapterConfig, needed: int) -> Array:
    matrix = np.asarray(writer, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != config.hidden_size:
        raise ShapeError(
            "writer",
            got=matrix.shape,
            allowed=f"({config.hidden_size}, m)",
            remedy="pass the weight with the residual stream on its first axis; transpose it if it is the other way",
        )
    if min(matrix.shape) < needed:
        raise ConfigError(
            "streams * rank + skip_directions",
            got=needed,
            allowed=f"at most {min(matrix.shape)}, the rank that writer {matrix.shape} can have",
            remedy="lower rank, streams or skip_directions, or start from a random basis",
        )
    if not np.isfinite(matrix).all():
        raise NonFiniteError("writer", got="NaN or infinity", allowed="finite values only", remedy="reload the model")
    return matrix
