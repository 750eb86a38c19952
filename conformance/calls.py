"""One call of each function of a port, small, for tests of what calls leave behind. Clauses: BACK-7 to BACK-12."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.interface import OPTIONAL, dtype_named, x_dtypes
from backends.state_file import encode_state
from conformance.agreement import HALF, inputs_of
from conformance.strategies import Adapter, Logits
from reference import AdapterConfig
from reference.errors import PortResultError, PortStoppedError

K = 3


@dataclass(frozen=True)
class Call:
    """One call of one function. ``arrays``: those among its arguments."""

    function: str
    arguments: tuple[Any, ...]

    def __call__(self, backend: Any) -> Any:
        """The result. Raises: AssertionError for a call that fails, though its arguments are good."""
        try:
            return getattr(backend, self.function)(*self.arguments)
        except (PortStoppedError, PortResultError):
            raise
        except Exception as error:
            raise AssertionError(f"{self.function} refused good arguments: {type(error).__name__}: {error}") from error

    def with_arrays(self, made: Callable[[np.ndarray], np.ndarray]) -> Call:
        """The same call with ``made`` of each array; with ``np.array``, arrays of its own, row by row."""
        return Call(self.function, tuple(made(a) if isinstance(a, np.ndarray) else a for a in self.arguments))

    @property
    def arrays(self) -> list[np.ndarray]:
        return [argument for argument in self.arguments if isinstance(argument, np.ndarray)]


def case_of(seed=4, n=3, leading=(5,), gate=1.0):
    return Adapter(Logits("normal", 0.5, n, (), seed), 2, 3, leading, gate, 1.0, 1.0, True, seed)


def calls_of(backend: Any, case: Adapter, iterations: int = K, **changed: Any) -> list[Call]:
    """Of each function that the port has, with single matrices, with a batch, and with x in each dtype of 16 bits.

    Calls of one list share arrays, and no array belongs to two lists. ``changed``: functions of single arrays.
    """
    x, logits, gate, basis = inputs_of(backend, case)
    rng = np.random.default_rng(case.seed + 1)
    square, other = (rng.standard_normal(logits.shape).astype(logits.dtype) for _ in range(2))
    arrays = {
        "x": x,
        "mix_logits": logits,
        "gate_logit": gate,
        "basis": basis,
        "cotangent": case.cotangent.astype(x.dtype),
        "square": square,
    }
    for name, change in changed.items():
        arrays[name] = change(arrays[name])
    x, logits, gate, basis, cotangent, square = arrays.values()
    batch, batch_of_cotangents = np.stack([logits, other]), np.stack([square, 2 * other])
    n, rank, d = basis.shape
    logits_32, gate_32, basis_32 = (array[None].astype(np.float32) for array in (logits, gate, basis))
    file = encode_state(logits_32, gate_32, basis_32, AdapterConfig(d, n, rank, iterations))
    adapter = (x, logits, gate, basis)
    calls = [
        Call("sinkhorn_projection", (logits, iterations)),
        Call("sinkhorn_projection_vjp", (logits, square, iterations)),
        Call("adapter_forward", (*adapter, iterations)),
        Call("adapter_vjp", (*adapter, cotangent, iterations)),
        Call("load_state", (file,)),
        Call("save_state", (np.array(logits[None]), gate.reshape(1).copy(), basis[None].copy(), iterations)),
        Call("adapter_autodiff", (*adapter, cotangent, iterations)),
        Call("sinkhorn_projection", (batch, iterations)),
        Call("sinkhorn_projection_vjp", (np.array(batch), batch_of_cotangents, iterations)),
    ]
    for half in HALF:
        if half in x_dtypes(backend):
            tokens, upstream = (array.astype(dtype_named(half)) for array in (x, cotangent))
            calls.append(Call("adapter_forward", (tokens, logits, gate, basis, iterations)))
            both = (np.array(tokens), logits, gate, basis, upstream, iterations)
            calls += [Call("adapter_vjp", both), Call("adapter_autodiff", both)]
    return [call for call in calls if call.function not in OPTIONAL or hasattr(backend, call.function)]
