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


BUDGETED = ("modular", "modular-inherit", "modular-distilled")


def with_budget(base: Condition | None, budget: str) -> Condition | None:
    """A condition of ``BUDGETED`` with a budget: "DELTA", for its displacement, or "none"; "still-DELTA",
    the same with a basis that stays after the first task; or "data-EPSILON", for what earlier tasks' tokens see, with
    such a basis. Each a number > 0 in its shortest form; None for anything else.

    One spelling for one budget: the name is a folder's and a row's.
    """
    kind = next((kind for kind in ("still-", "data-") if budget.startswith(kind)), "")
    number = budget.removeprefix(kind)
    if base is None or base.name not in BUDGETED:
        return None
    full, label = f"{base.name}@{budget}", base.label
    if budget == "none":
        return replace(base, name=full, label=f"{label}, no budget", budget=math.inf)
    try:
        size = float(number)
    except ValueError:
        return None
    if not 0 < size < math.inf or number != f"{size:g}":
        return None
    if kind == "data-":
        label = f"{label}, data ε {size:g}"
        return replace(base, name=full, label=label, basis="first-task", budget=math.inf, data_budget=size)
    if kind == "still-":
        return replace(base, name=full, label=f"{label}, still basis, δ {size:g}", basis="first-task", budget=size)
    return replace(base, name=full, label=f"{label}, δ {size:g}", budget=size)
