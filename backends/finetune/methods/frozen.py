"""FROZEN: a fresh LoRA for each task, and nothing shared that learns; the same from an earlier task's
LoRA; and with as many values as MODULAR has.

Source: paper section 6.1; the starts and the raised rank: ours.
"""

from backends.finetune.methods.method import Condition, Mark


def raised_rank(rank: int, extra: int, per_rank: int) -> int:
    """The smallest rank with ``extra`` values more than ``rank`` has, of a LoRA with ``per_rank`` values a rank."""
    return rank + -(-extra // per_rank)


CONDITIONS = (
    Condition("frozen", "FROZEN", Mark("#0072B2", (0, (4, 1.5)), "s")),
    Condition("frozen-inherit", "FROZEN, inherit", Mark("#332288", (0, (3, 1)), "^"), start="last"),
    Condition("frozen-nearest", "FROZEN, nearest", Mark("#88CCEE", (0, (3, 1, 1, 1)), "d"), start="nearest"),
    Condition("frozen-raised", "FROZEN, raised rank", Mark("#56B4E9", (0, (4, 1, 1, 1)), "P"), raised_rank=True),
)
