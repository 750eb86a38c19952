"""A memory of finished tasks: which examples are kept, and which of them a step is given.

Tasks have known ends here, so a task's memory is one uniform draw when it is finished (the reservoir of A. Chaudhry et
al. (2019), arXiv:1902.10486, has the same law, without knowing the end), of a fixed size per task, so that no task
crowds out another. Every draw is a function of its arguments alone, so a resumed run draws the same examples.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

# Keep these generators apart from each other and from that of the training order, [seed, phase, epoch].
_MEMORY, _DRAW = 0x4D454D, 0x44524157


def memory_indices(count: int, memory_per_task: int, *, seed: int, task: int) -> list[int]:
    """Which of the ``count`` training examples of a finished task are kept, in increasing order.

    A uniform draw of ``min(count, memory_per_task)`` without replacement. ``task`` counts from 0.
    """
    rng = np.random.default_rng([_MEMORY, seed, task])
    return sorted(rng.choice(count, min(count, memory_per_task), replace=False).tolist())


def replay_draw(sizes: Sequence[int], batch_size: int, *, seed: int, phase: int, step: int) -> list[tuple[int, int]]:
    """The examples replayed beside the batch of ``step``: (task, index within its memory) for each.

    Args:
        sizes: of the memories of the earlier tasks, in the order of the tasks. batch_size: how many to draw.
        phase, step: of the update, both from 0.

    Returns:
        ``batch_size`` pairs, uniform over the union of the memories and without replacement. A union smaller than the
        batch is taken whole, as often as it fits, and the rest is drawn without replacement. Empty if the union is.
    """
    starts = [0, *accumulate(sizes)]
    total = starts[-1]
    if total == 0:
        return []
    rng = np.random.default_rng([_DRAW, seed, phase, step])
    whole, rest = divmod(batch_size, total)
    drawn = np.concatenate([np.tile(np.arange(total), whole), rng.choice(total, rest, replace=False)])
    tasks = np.searchsorted(starts, drawn, side="right") - 1
    return [(int(task), int(index) - starts[task]) for task, index in zip(tasks, drawn, strict=True)]
