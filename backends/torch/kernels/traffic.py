"""How many bytes the kernels move, counted by formula; the tests count what the kernels do.

Device memory sees each byte of an operand once: a program that passes over x twice finds it in the L2 cache the second
time (``blocks_for``), and so does one that reads its own scratch again. What is left is ``again``.
"""

from __future__ import annotations

from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes: read from and written to device memory at least, and read again from a cache."""

    read: int
    written: int
    again: int = 0

    def __add__(self, other: tuple[int, ...]) -> Traffic:  # type: ignore[override]
        return Traffic(*(left + right for left, right in zip(self, other, strict=True)))


def projection_forward(batch: int, n: int, itemsize: int = 4) -> Traffic:
    """S read and M written."""
    size = batch * n * n * itemsize
    return Traffic(size, size)


def projection_backward(
    batch: int, n: int, iterations: int, programs: int, block: int, padded: int, itemsize: int = 4
) -> Traffic:
    """S and M' read, S' written, and 2K - 2 padded softmaxes written and read by the program that wrote them."""
    size = batch * n * n * itemsize
    scratch = 2 * (iterations - 1) * programs * block * padded**2 * itemsize
    return Traffic(2 * size, size + scratch, scratch)


def mix_basis(n: int, width: int, d: int, programs: int, itemsize: int = 4) -> Traffic:
    """A, M and alpha read, and ``alpha D^T A`` written. M and alpha are read by every program."""
    small = (n * n + 1) * itemsize
    return Traffic(width * d * itemsize + small, width * d * itemsize, (programs - 1) * small)


def mixing_forward(tokens: int, d: int, width: int, programs: int, x_itemsize: int, itemsize: int = 4) -> Traffic:
    """The launch over tokens: x is read once and y written once; beside them the streams, and A and C per program."""
    x, parameters = tokens * d * x_itemsize, 2 * width * d * itemsize
    return Traffic(x + parameters, x + tokens * width * itemsize, x + (programs - 1) * parameters)


def mixing_read_back(tokens: int, d: int, width: int, programs: int, x_itemsize: int, itemsize: int = 4) -> Traffic:
    """The first launch of the backward pass over tokens, ``w = A y'``."""
    x, parameters = tokens * d * x_itemsize, width * d * itemsize
    return Traffic(x + parameters, tokens * width * itemsize, (programs - 1) * parameters)


def mixing_gradients(
    tokens: int, d: int, width: int, chunks: int, splits: int, x_itemsize: int, itemsize: int = 4
) -> Traffic:
    """The second: x and y' read, x' written; z and w once per chunk of places, E per part of the tokens, P and Q."""
    x, parameters, streams = tokens * d * x_itemsize, width * d * itemsize, 2 * tokens * width * itemsize
    return Traffic(
        2 * x + parameters + streams,
        x + 2 * splits * parameters,
        (chunks - 1) * streams + (splits - 1) * parameters,
    )


def mix_gradients(n: int, width: int, d: int, splits: int, programs: int, padded: int, itemsize: int = 4) -> Traffic:
    """The third, of the parameters' size: P, Q, A, M and alpha read; A' and the products of A and P written."""
    small, parameters = (n * n + 1) * itemsize, width * d * itemsize
    return Traffic(
        (2 * splits + 1) * parameters + small,
        parameters + programs * padded**2 * itemsize,
        (programs - 1) * small,
    )
