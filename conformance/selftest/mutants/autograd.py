"""The autograd example before it was mended in its two places: right in every result, and wrong in its gradients.

Found by running the suite on it, as whoever writes such a port would. Needs PyTorch, which is imported only where one
of these is made.
"""

from functools import partial

from backends.interface import REQUIRED
from conformance.selftest.mutants.base import ADAPTER, ORTHOGONAL, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.port import NumpyPort


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
        port = AutogradPort(**{naive: naively[naive]})
        for function in REQUIRED:
            setattr(self, function, getattr(port, function))
        self.x_dtypes = ("float32",)


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
