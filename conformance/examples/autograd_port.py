"""A whole port in plain PyTorch: the formulas of spec/30 and spec/40, written out, and gradients by autograd alone.

Two formulas have to be written as here, since autograd differentiates what was written: the largest row sum
(:func:`largest`), and the sigmoid (:func:`sigmoid`). With ``amax`` and ``torch.sigmoid`` in their places the port is
right in every result and wrong in its gradients; ``selftest/mutants/autograd.py`` keeps both as wrong ports.

Clauses: BACK-1, GRAD-2, GRAD-6, SINK-5.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.interface import Gradients, State
from conformance.examples.pure_python_port import load_state

Array = NDArray[Any]
Formula = Callable[[Tensor], Tensor]


def largest(row_sums: Tensor) -> Tensor:
    """(..., n, 1) -> (..., 1, 1), with the derivative going to the first of several equal sums.

    ``row_sums.amax(-2, keepdim=True)`` would share it among them all, which GRAD-2 does not allow. The index that
    ``argmax`` gives is the first one, and ``gather`` sends the derivative there.
    """
    return row_sums.gather(-2, row_sums.argmax(-2, keepdim=True))


def sigmoid(gate_logit: Tensor) -> Tensor:
    """As spec/10 writes it, so that the derivative keeps its digits where the gate is open.

    ``torch.sigmoid`` has the derivative s (1 - s), taken from the rounded s: at a gate of 12 two digits of it are left
    in float32, and from 17 on it is 0 (GRAD-6). Autograd's derivative of 1 / (1 + exp(-v)), which is exp(-v) / (1 +
    exp(-v))^2, has them all.
    """
    if gate_logit >= 0:
        return 1 / (1 + torch.exp(-gate_logit))
    return torch.exp(gate_logit) / (1 + torch.exp(gate_logit))


class AutogradPort:
    name, version, device = "autograd-cpu", f"example, torch {torch.__version__}", "cpu"  # BACK-4
    parameter_dtype: np.dtype[Any] = np.dtype(np.float32)  # and, without x_dtypes, that of x (BACK-6)

    def __init__(self, largest: Formula = largest, sigmoid: Formula = sigmoid) -> None:
        self.largest, self.sigmoid = largest, sigmoid

    # -- the formulas --------------------------------------------------------------------------------------------------

    def project(self, logits: Tensor, iterations: int) -> Tensor:
        """S (..., n, n) -> M."""
        matrix = logits - logits.detach().amax((-2, -1), keepdim=True)  # GRAD-3: the shift carries no gradient
        for step in range(2 * iterations - 1):  # SINK-3: rows, columns, rows ... exactly K times
            matrix = matrix.log_softmax(-2 if step % 2 else -1)
        plain = matrix.double().softmax(-2)  # SINK-5: float32 needs such care from n = 9 on
        row_sums = plain.sum(-1, keepdim=True)
        m = self.largest(row_sums)
        return plain / m + (1 - row_sums / m) / logits.shape[-1]  # SINK-4

    def adapt(self, x: Tensor, logits: Tensor, gate_logit: Tensor, basis: Tensor, iterations: int) -> Tensor:
        """x (..., d) -> y."""
        mixing = self.project(logits, iterations).to(x.dtype)
        rows = basis.flatten(0, 1)  # A as a matrix (n r, d)
        gram = rows @ rows.T
        tau = gram.trace()
        unit = gram / tau  # MIX-6: before the powers, so that they stay in range
        fourth = unit @ unit @ unit @ unit
        kappa = tau * (fourth * fourth).sum() ** 0.125
        streams = (x @ rows.T).unflatten(-1, basis.shape[:2])  # z = A x
        moved = (mixing @ streams - streams).flatten(-2)  # MIX-3: over the second index of M
        return x + self.sigmoid(gate_logit) / kappa * (moved @ rows)  # MIX-2, MIX-5

    # -- the interface (spec/80-backend-interface.md) -----------------------------------------------------------------

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        with torch.no_grad():
            return array(self.project(checked_logits(mix_logits, iterations), iterations).float())

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits, upstream = checked_logits(mix_logits, iterations), tensor(cotangent)
        demand(upstream.shape == logits.shape, "cotangent is not shaped as mix_logits")
        with torch.enable_grad():
            mixing = self.project(logits.requires_grad_(), iterations).float()
            return array(*torch.autograd.grad(mixing, logits, upstream))

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        inputs = checked_inputs(x, mix_logits, gate_logit, basis, iterations)
        with torch.no_grad():
            return array(self.adapt(*inputs, iterations))

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        inputs, upstream = checked_inputs(x, mix_logits, gate_logit, basis, iterations), tensor(cotangent)
        demand(upstream.shape == inputs[0].shape, "cotangent is not shaped as x")
        with torch.enable_grad():
            for value in inputs:
                value.requires_grad_()
            y = self.adapt(*inputs, iterations)
            return Gradients(*map(array, torch.autograd.grad(y, inputs, upstream)))

    def load_state(self, data: bytes) -> State:
        *arrays, iterations = load_state(data)  # a reader in plain Python serves any framework
        logits, gates, bases = (np.asarray(value, np.float32) for value in arrays)
        return State(logits, gates, bases, iterations)


def tensor(value: Array) -> Tensor:
    """A row-major copy: torch takes no negative strides, and its tensor must not share the caller's memory."""
    demand(np.asarray(value).dtype == np.float32, "an array that is not float32")
    return torch.from_numpy(np.array(value, order="C"))


def array(result: Tensor) -> Array:
    """Memory of its own: a gradient may be a broadcast tensor, whose numbers are one number (BACK-3)."""
    return np.array(result.detach().numpy())


def demand(condition: Any, otherwise: str) -> None:
    """What a port refuses it refuses by an exception; which one is its own affair."""
    if not condition:
        raise ValueError(otherwise)


def checked_logits(mix_logits: Array, iterations: int) -> Tensor:
    demand(type(iterations) is int and iterations >= 1, "iterations is no integer >= 1")  # SINK-2: nor 2.0, nor True
    logits = tensor(mix_logits)
    demand(logits.ndim >= 2 and logits.shape[-1] == logits.shape[-2] >= 1, "mix_logits is not (..., n, n)")  # SINK-1
    demand(logits.isfinite().all(), "mix_logits holds NaN or an infinity")  # SINK-9
    return logits


def checked_inputs(
    x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, logits = tensor(x), checked_logits(mix_logits, iterations)
    gate, rows = tensor(gate_logit), tensor(basis)
    demand(rows.ndim == 3 and rows.numel() > 0, "basis is not (n, r, d)")  # MIX-1
    n, r, d = rows.shape
    demand(n * r <= d, "more directions than dimensions")
    demand(logits.shape == (n, n), "mix_logits is not (n, n), as basis is (n, r, d)")
    demand(tokens.ndim >= 1 and tokens.shape[-1] == d, "x is not (..., d)")
    demand(gate.numel() == 1, "gate_logit is not a single value")  # MIX-4
    demand(gate.isfinite() and rows.isfinite().all(), "gate_logit or basis is not finite")  # MIX-11
    demand(rows.any(), "basis is zero")  # MIX-6
    return tokens, logits, gate, rows


def make_backend() -> AutogradPort:
    return AutogradPort()
