"""What the paper reports, to show beside our figures."""

from __future__ import annotations

from typing import NamedTuple


class PaperColumn(NamedTuple):
    """One column of the paper's Table 7: mean and sample SD as printed there, and seeds 0, 42 and 1234."""

    mean: float
    deviation: float | None
    seeds: tuple[float, float, float]


class PaperCondition(NamedTuple):
    """Drift and advantage in percent, holdout in nats per token; None where the paper prints nothing."""

    drift: PaperColumn
    holdout: PaperColumn | None
    advantage: PaperColumn | None


PAPER_SEEDS = (0, 42, 1234)
#: Source: paper, Table 7 (Mistral-7B, five domains). Beside our figures only as a sign of the direction to expect.
PAPER_TABLE_7 = {
    "naive": PaperCondition(PaperColumn(42.96, 5.5, (38.1, 41.7, 49.0)), None, None),
    "frozen": PaperCondition(
        PaperColumn(1.95, 0.64, (1.47, 1.66, 2.71)), PaperColumn(1.2888, None, (1.2716, 1.2912, 1.3036)), None
    ),
    "modular": PaperCondition(
        PaperColumn(-0.17, 0.17, (-0.03, -0.10, -0.36)),
        PaperColumn(1.2631, None, (1.2530, 1.2657, 1.2705)),
        PaperColumn(1.99, 0.54, (1.46, 1.97, 2.54)),
    ),
}
