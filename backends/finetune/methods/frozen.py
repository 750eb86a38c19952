"""FROZEN: a fresh LoRA for each task, and nothing shared that learns.

Its controls: from an earlier task's LoRA, and answered with the newest one of a domain; with as many values as MODULAR
has; with twice the steps; and from other draws of LoRA's start, which show what a draw alone changes.

Source: paper section 6.1; the controls: ours.
"""

from backends.finetune.methods.method import Condition, Mark


def raised_rank(rank: int, extra: int, per_rank: int) -> int:
    """The smallest rank with ``extra`` values more than ``rank`` has, of a LoRA with ``per_rank`` values a rank."""
    return rank + -(-extra // per_rank)


CONDITIONS = (
    Condition("frozen", "FROZEN", Mark("#0072B2", (0, (4, 1.5)), "s")),
    Condition("frozen-inherit", "FROZEN, inherit", Mark("#332288", (0, (3, 1)), "^"), start="last"),
    Condition("frozen-nearest", "FROZEN, nearest", Mark("#88CCEE", (0, (3, 1, 1, 1)), "d"), start="nearest"),
    Condition(
        "frozen-newest",
        "FROZEN, newest",
        Mark("#6699CC", (0, (5, 1, 1, 1)), "D"),
        start="nearest",
        answers="newest",
    ),
    Condition("frozen-raised", "FROZEN, raised rank", Mark("#56B4E9", (0, (4, 1, 1, 1)), "P"), raised_rank=True),
    Condition("frozen-double", "FROZEN, twice the steps", Mark("#0096C7", (0, (6, 1.5)), "H"), epochs=2),
    Condition("frozen-draw-2", "FROZEN, second draw", Mark("#5B8DB8", (0, (1, 1)), "1"), draw=1),
    Condition("frozen-draw-3", "FROZEN, third draw", Mark("#8FB1CC", (0, (1, 2)), "2"), draw=2),
)
