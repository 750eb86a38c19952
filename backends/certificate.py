"""The certificate of a stack of adapters: what was measured, layer by layer, and as a table, for every backend."""

from typing import Any, NamedTuple

ROUNDING = 5e-7  # of float32, in the sums and the norm of M (SINK-5, SINK-6)


class LayerCertificate(NamedTuple):
    """One layer of a Certificate, as plain numbers."""

    layer: int
    name: str
    sum_error: float
    mixing_norm: float
    largest: float
    smallest: float
    displacement: float | None

    @property
    def excess(self) -> float:
        """By how much a bound is broken beyond float32 rounding (SINK-5, SINK-6); 0 if none is."""
        return max(self.sum_error - ROUNDING, self.mixing_norm - 1 - ROUNDING, self.largest - 1 - ROUNDING, 0.0)


class Certificate(NamedTuple):
    """Per layer, arrays of the backend of shape (L,), float64. ``str()`` of it is a table.

    Clauses: SINK-5, SINK-6, CERT-1, CERT-2.
    """

    sum_error: Any  # worst |row or column sum of M - 1|
    mixing_norm: Any  # spectral norm of M
    largest: Any  # singular values of the whole adapter
    smallest: Any
    displacement: Any = None  # from an anchor, if one was given
    names: tuple[str, ...] = ()

    def worst_first(self) -> list[LayerCertificate]:
        """One row per layer: those that break a bound first, then by displacement, then by the smallest singular value.

        The smallest singular value says how much of a direction the layer can erase.
        """
        columns = [tensor.tolist() for tensor in self[:4]]
        layers = len(columns[0])
        moved = [None] * layers if self.displacement is None else self.displacement.tolist()
        names = self.names or [str(layer) for layer in range(layers)]
        rows = [LayerCertificate(*row) for row in zip(range(layers), names, *columns, moved, strict=True)]
        return sorted(rows, key=lambda row: (-row.excess, -(row.displacement or 0.0), row.smallest, row.layer))

    def __str__(self) -> str:
        """A table, worst layer first."""
        rows = self.worst_first()
        width = max([len("layer"), *(len(row.name) for row in rows)])
        head = f"{'layer':<{width}}  sum error  norm of M - 1    largest   smallest  displacement"
        lines = [
            f"{row.name:<{width}}  {row.sum_error:9.1e}  {row.mixing_norm - 1:13.1e}  {row.largest:9.7f}  "
            f"{row.smallest:9.7f}  {'-' if row.displacement is None else format(row.displacement, '.6f'):>12}"
            for row in rows
        ]
        return "\n".join([head, *lines])
