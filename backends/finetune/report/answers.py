"""The inference toggle on a question panel, counted: Wilson's intervals and McNemar's exact test."""

from __future__ import annotations

from typing import NamedTuple

import reference
from backends.finetune.runs.results import RunResults


class PanelRow(NamedTuple):
    """One panel. ``p``: two-sided, of McNemar's exact test. ``gained``: right with CRMA only; ``lost``: without."""

    condition: str
    seed: str
    questions: int
    with_crma: int
    with_interval: tuple[float, float]
    without_crma: int
    without_interval: tuple[float, float]
    gained: int
    lost: int
    p: float


def panel_rows(results: RunResults) -> list[PanelRow]:
    """Every panel of the run, by condition and seed; paper Table 8. Clause: CL-9."""
    rows = []
    for condition in results.conditions:
        for seed in results.seeds:
            if (panel := results.panels.get((condition, seed))) is None:
                continue
            pairs = list(zip(panel.with_crma, panel.without_crma, strict=True))
            right, bypassed = sum(panel.with_crma), sum(panel.without_crma)
            gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
            rows.append(
                PanelRow(
                    condition,
                    f"seed {seed}",
                    len(pairs),
                    right,
                    reference.wilson_interval(right, len(pairs)),
                    bypassed,
                    reference.wilson_interval(bypassed, len(pairs)),
                    gained,
                    lost,
                    reference.mcnemar_exact(gained, lost),
                )
            )
    return rows
