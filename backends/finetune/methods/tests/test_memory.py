"""Replay draws: their laws, and that they are functions of their arguments alone."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from backends.finetune.methods.memory import memory_indices, replay_draw

DRAWS = 6000


def chi_squared(counts: Counter, cells: list, total: int) -> float:
    """Pearson's statistic of a uniform law, per degree of freedom: 1 for a true one, of standard deviation
    sqrt(2 / degrees).
    """
    expected = total / len(cells)
    assert set(counts) <= set(cells)
    return sum((counts[cell] - expected) ** 2 / expected for cell in cells) / (len(cells) - 1)


def test_every_memory_of_the_right_size_is_as_likely():
    cells = list(combinations(range(6), 3))  # 20 of them: 4 standard deviations are 1.3
    counts = Counter(tuple(memory_indices(6, 3, seed=seed, task=1)) for seed in range(DRAWS))
    assert chi_squared(counts, cells, DRAWS) < 2.3


def test_a_task_smaller_than_the_memory_is_kept_whole():
    assert memory_indices(4, 10, seed=0, task=0) == [0, 1, 2, 3]


def test_every_pair_of_the_union_is_as_likely_whatever_the_sizes():
    sizes = [1, 0, 3, 2]
    union = [(task, index) for task, size in enumerate(sizes) for index in range(size)]
    cells = [frozenset(pair) for pair in combinations(union, 2)]  # 15 of them: 4 standard deviations are 1.5
    counts = Counter(frozenset(replay_draw(sizes, 2, seed=3, phase=4, step=step)) for step in range(DRAWS))
    assert chi_squared(counts, cells, DRAWS) < 2.5


def test_a_union_smaller_than_the_batch_is_taken_as_often_as_it_fits():
    extra: Counter[tuple[int, int]] = Counter()
    for step in range(DRAWS):
        counts = Counter(replay_draw([2, 1], 7, seed=0, phase=2, step=step))
        assert sorted(counts.values()) == [2, 2, 3]
        extra.update(counts.most_common(1)[0][:1])
    assert chi_squared(extra, [(0, 0), (0, 1), (1, 0)], DRAWS) < 5


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_nothing_is_replayed_in_the_first_phase(sizes):
    assert replay_draw(sizes, 4, seed=0, phase=0, step=0) == []


def test_a_draw_depends_on_its_arguments_alone_and_on_each_of_them():
    arguments = {"seed": 5, "phase": 2, "step": 9}
    drawn = replay_draw([50, 60], 20, **arguments)
    np.random.default_rng(0).random()  # nothing that others draw comes into it
    assert replay_draw([50, 60], 20, **arguments) == drawn
    for name in arguments:
        assert replay_draw([50, 60], 20, **(arguments | {name: 7})) != drawn
    kept = memory_indices(500, 20, seed=5, task=2)
    assert memory_indices(500, 20, seed=5, task=2) == kept
    assert memory_indices(500, 20, seed=6, task=2) != kept
    assert memory_indices(500, 20, seed=5, task=3) != kept
