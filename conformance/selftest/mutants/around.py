"""Right ports with something done around each of their calls: what mutants of memory and process are derived from."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backends.interface import OPTIONAL, REQUIRED
from conformance.selftest.port import Array, NumpyPort

FUNCTIONS = tuple(name for name in (*REQUIRED, *OPTIONAL) if hasattr(NumpyPort, name))


class Around(NumpyPort):
    """Each call of each function goes through ``call``. What the port calls within itself does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = NumpyPort()
        for function in FUNCTIONS:
            setattr(self, function, partial(self.call, function))

    def call(self, function: str, *arguments: Any) -> Any:
        return getattr(self.inner, function)(*arguments)


def each_array(change: Callable[[Array], Array], result: Any) -> Any:
    """``change`` of each array of a result; what holds none is handed on."""
    if isinstance(result, np.ndarray):
        return change(result)
    if isinstance(result, tuple):
        return type(result)(*(each_array(change, part) for part in result))
    return result


def arrays_of(arguments: tuple[Any, ...]) -> list[Array]:
    return [argument for argument in arguments if isinstance(argument, np.ndarray)]
