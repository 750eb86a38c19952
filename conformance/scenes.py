"""Sizes, axes and dtypes of x in which a rule about single values is tried, and shapes that do not fit.

A rule that is asked of n = 3, few tokens and float32 alone holds there, and perhaps nowhere else.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends import Backend
from conformance.agreement import INPUTS, inputs_of, require_x_dtype
from conformance.profiles import slow
from conformance.strategies import Adapter, Logits

Array = NDArray[Any]
Shape = tuple[int, ...]


class Scene(NamedTuple):
    """Streams, rank, what the hidden size is more than n r; axes of the tokens; the dtype of x, "" for the port's."""

    n: int
    rank: int
    spare: int
    leading: Shape
    dtype: str = ""


SCENES = {
    "one stream": Scene(1, 1, 1, (5,)),
    "three streams": Scene(3, 1, 1, (5,)),
    slow("many streams, wide"): Scene(6, 2, 138, (2, 3)),
    slow("one token"): Scene(4, 1, 0, ()),
    slow("float16"): Scene(5, 1, 2, (1, 4), "float16"),
    slow("bfloat16"): Scene(4, 2, 3, (5,), "bfloat16"),
}
#: of a batch of logits
BATCHES = [(1, 1), (3, 3), (2, 1, 1), (2, 3, 3), *map(slow, ((6, 6), (2, 1, 2, 5, 5)))]


def inputs_in(backend: Backend, name: str) -> dict[str, Array]:
    """x, mix_logits, gate_logit and basis of a scene. Skips the test where the port does not take its dtype of x."""
    scene = SCENES[name]
    if scene.dtype:
        require_x_dtype(backend, scene.dtype)
    logits = Logits("normal", 1.0, scene.n, (), 4)
    case = Adapter(logits, scene.rank, scene.spare, scene.leading, 0.0, 1.0, 1.0, False, 5)
    return dict(zip(INPUTS, map(np.array, inputs_of(backend, case, scene.dtype or None)), strict=True))


def other_shapes(shape: Shape) -> list[Shape]:
    """An axis longer, shorter, 1, empty, left out or more, all in one, the axes in another order: not ``shape``."""
    found: list[Shape] = [(), (1, *shape), (2, *shape), (*shape, 1), (math.prod(shape),), shape[::-1]]
    for axis, size in enumerate(shape):
        others = (size + 1, size - 1, 1, 0, 2 * size)
        found += [(*shape[:axis], other, *shape[axis + 1 :]) for other in others]
        found.append((*shape[:axis], *shape[axis + 1 :]))
    return [one for one in dict.fromkeys(found) if one != shape]
