"""The backend ``jax-pallas``: the kernels on a GPU, or, where there is none, in Pallas' interpreter, for tests."""

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import jax
from numpy.typing import NDArray

from backends.jax.backend import JaxBackend
from backends.jax.kernels.launch import interpreter


class InterpretedBackend(JaxBackend):
    """On the CPU; ``device`` says so. Clauses: BACK-2, ERR-3."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "cpu", "pallas")
        self.device = "cpu (Pallas interpreter)"

    def _placed(self, *arrays: NDArray[Any]) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(super()._placed(*arrays))
        stack.enter_context(interpreter())
        return stack


def make_backend(name: str) -> JaxBackend:
    """Factory for ``load_backend``: jax-pallas."""
    if any(device.platform == "gpu" for device in jax.devices()):
        return JaxBackend(name, "cuda", "pallas")
    return InterpretedBackend(name)
