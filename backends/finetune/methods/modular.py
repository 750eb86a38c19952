"""MODULAR: a fresh LoRA for each task and a shared CRMA that goes on learning; and its controls.

Source: paper section 6.1; the controls: ours. Clause: CL-5.
"""

import math
from dataclasses import replace

from backends.finetune.methods.method import Condition, Mark

MODULAR = Condition("modular", "MODULAR", Mark("#009E73", "-", "D"), crma="doubly-stochastic")
PINNED = replace(
    MODULAR, name="modular-pinned", label="MODULAR, pinned", mark=Mark("#20B2AA", (0, (8, 1.5)), "p"), pinned=True
)
CONDITIONS = (
    MODULAR,
    replace(
        MODULAR,
        name="modular-still",
        label="MODULAR, still",
        mark=Mark("#7A8B00", (0, (6, 1, 1, 1)), "v"),
        trains_crma="first-task",
    ),
    replace(
        MODULAR,
        name="modular-unconstrained",
        label="MODULAR, unconstrained",
        mark=Mark("#882255", (0, (2, 1)), "X"),
        crma="unconstrained",
        budget=math.inf,
    ),
    PINNED,
    replace(
        PINNED,
        name="modular-fresh",
        label="MODULAR, fresh CRMA",
        mark=Mark("#B2DF8A", (0, (5, 1, 1, 1, 1, 1)), "*"),
        trains_crma="each-anew",
        budget=math.inf,
    ),
    replace(
        PINNED,
        name="modular-ratchet",
        label="MODULAR, ratchet",
        mark=Mark("#6A3D9A", (0, (10, 2)), "h"),
        ratchet=True,
    ),
    replace(
        MODULAR,
        name="modular-inherit",
        label="MODULAR, inherit",
        mark=Mark("#117733", (0, (3, 1)), "<"),
        start="last",
    ),
    replace(
        MODULAR,
        name="modular-nearest",
        label="MODULAR, nearest",
        mark=Mark("#44AA99", (0, (3, 1, 1, 1)), ">"),
        start="nearest",
    ),
)


def with_budget(delta: str) -> Condition | None:
    """MODULAR with a displacement budget, "none" or a number > 0 in its shortest form; None for anything else.

    One spelling for one budget: the name is a folder's and a row's.
    """
    try:
        budget = math.inf if delta == "none" else float(delta)
    except ValueError:
        return None
    if not budget > 0 or (delta != "none" and (math.isinf(budget) or delta != f"{budget:g}")):
        return None
    label = "MODULAR, no budget" if math.isinf(budget) else f"MODULAR, δ {budget:g}"
    return replace(MODULAR, name=f"modular@{delta}", label=label, budget=budget)
