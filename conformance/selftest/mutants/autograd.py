"""The autograd example before it was mended in its two places: right in every result, and wrong in its gradients.

Found by running the suite on it, as whoever writes such a port would. Needs PyTorch, which is imported only where one
of these is made.
"""

from functools import partial
from typing import Any

from backends.interface import Gradients, State
from conformance.selftest.mutants.base import ADAPTER, ORTHOGONAL, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import Array, NumpyPort


class NaiveAutograd(NumpyPort):
    """Either ``amax``, which shares its derivative among equal row sums, or ``torch.sigmoid``, whose s (1 - s) has lost
    its digits where the gate is open.
    """

    name = "naive-autograd-cpu"

    def __init__(self, naive: str) -> None:
        super().__init__()
        import torch

        from conformance.examples.autograd_port import AutogradPort

        naively = {"largest": lambda row_sums: row_sums.amax(-2, keepdim=True), "sigmoid": torch.sigmoid}
        self.port = AutogradPort(**{naive: naively[naive]})
        self.x_dtypes = ("float32",)

    def sinkhorn_projection(self, *inputs: Any) -> Array:
        return self.port.sinkhorn_projection(*inputs)

    def sinkhorn_projection_vjp(self, *inputs: Any) -> Array:
        return self.port.sinkhorn_projection_vjp(*inputs)

    def adapter_forward(self, *inputs: Any) -> Array:
        return self.port.adapter_forward(*inputs)

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        return self.port.adapter_vjp(*inputs)

    def load_state(self, data: bytes) -> State:
        return self.port.load_state(data)


_RIGHT = (PROJECTION, ADAPTER, ORTHOGONAL, STATE_FILE)
MUTANTS = (
    Mutant(
        "naive_autograd_ties",
        partial(NaiveAutograd, "largest"),
        ("test_largest_row_sum_takes_the_first_argmax_of_a_tie", "test_golden_projection_gradient"),
        (*_RIGHT, "test_golden_adapter_gradient"),
    ),
    Mutant(
        "naive_autograd_gate",
        partial(NaiveAutograd, "sigmoid"),
        ("test_golden_adapter_gradient", "test_design::test_adapter_gradient"),
        (*_RIGHT, "test_golden_projection_gradient"),
    ),
)
