"""What Python does for cpp_port.cpp: compile it, check shapes and dtypes, and hand over pointers by ctypes.

The compiler is ``c++``, or what the variable ``CXX`` names; the library lives in a temporary folder until it is loaded.
Clauses: BACK-1, BACK-3, BACK-6.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.errors import BackendError

Array = NDArray[Any]
SOURCE = Path(__file__).with_suffix(".cpp")
OPTIONS = ("-std=c++17", "-O2", "-shared", "-fPIC")  # no -ffast-math: it takes NaN for a number (SINK-9, GRAD-8)
X_DTYPES = ("float64", "float32", "float16", "bfloat16")


@cache
def library() -> ctypes.CDLL:
    """The compiled port, once for each process. Raises: BackendError where it cannot be compiled."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise _no_library(f"no program named {' '.join(compiler) or 'by CXX'!r}", "install g++ or clang, or set CXX")
    with tempfile.TemporaryDirectory(prefix="crma-cpp-port-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "cpp_port.so"
        command = [*compiler, *OPTIONS, str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _no_library(f"status {done.returncode}: {done.stderr.strip()[:500]}", "compile it by hand")
        loaded = ctypes.CDLL(str(target))
    pointer, size, k = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    layer: list[Any] = [
        pointer,
        ctypes.c_float,
        pointer,
        pointer,
        k,
    ]  # mix_logits, gate_logit, basis, its shape, iterations
    loaded.crma_projection.argtypes = [pointer, size, size, k, pointer, pointer]
    loaded.crma_adapter_forward.argtypes = [ctypes.c_bool, pointer, size, *layer, pointer]
    loaded.crma_adapter_vjp.argtypes = [ctypes.c_bool, pointer, size, *layer, *[pointer] * 5]
    loaded.crma_load_state.argtypes = [pointer, ctypes.c_uint64, pointer, pointer]
    for name in ("crma_projection", "crma_adapter_forward", "crma_adapter_vjp", "crma_load_state"):
        getattr(loaded, name).restype = ctypes.c_char_p  # what is wrong, or None
    return loaded


def _no_library(got: str, remedy: str) -> BackendError:
    return BackendError("C++ compiler", got=got, allowed=f"one that compiles {SOURCE.name} as C++17", remedy=remedy)


def demand(condition: bool, otherwise: str) -> None:
    """What a port refuses it refuses by an exception; which one is its own affair."""
    if not condition:
        raise ValueError(otherwise)


def call(function: Any, *arguments: Any) -> None:
    """Arrays go as the addresses of their first numbers."""
    reason = function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
    demand(reason is None, (reason or b"").decode())


def taken(array: Any, name: str, dtypes: tuple[str, ...] = ("float32",), as_dtype: Any = np.float32) -> Array:
    """In one aligned, row-major piece of memory, whatever its strides were; a copy only where it was not."""
    array = np.asarray(array)
    demand(array.dtype.name in dtypes, f"{name} is {array.dtype}, not {' or '.join(dtypes)}")  # MIX-10
    return np.require(array, as_dtype, ["C_CONTIGUOUS", "ALIGNED"]).reshape(array.shape)


def checked_iterations(iterations: Any) -> int:
    good = isinstance(iterations, (int, np.integer)) and not isinstance(iterations, bool)
    demand(good and 1 <= iterations < 2**63, f"iterations is {iterations!r}, no integer >= 1")  # SINK-2
    return int(iterations)


class CppPort:
    name, version, device = "cpp-cpu", "example", "cpu"  # BACK-4
    parameter_dtype, x_dtypes = np.dtype(np.float32), X_DTYPES

    def __init__(self) -> None:
        self.library = library()

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        return self._projection(mix_logits, iterations)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        upstream = taken(cotangent, "cotangent")
        demand(upstream.shape == np.shape(mix_logits), "cotangent is not shaped as mix_logits")
        return self._projection(mix_logits, iterations, upstream)

    def _projection(self, mix_logits: Array, iterations: int, cotangent: Array | None = None) -> Array:
        logits, k = taken(mix_logits, "mix_logits"), checked_iterations(iterations)
        shape = logits.shape
        demand(len(shape) >= 2 and shape[-1] == shape[-2] >= 1, "mix_logits is not (..., n, n)")  # SINK-1
        result = np.empty(shape, np.float32)
        call(self.library.crma_projection, logits, prod(shape[:-2]), shape[-1], k, cotangent, result)
        return result

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        tokens, wide = self._tokens(x, "x")
        layer = self._layer(tokens, mix_logits, gate_logit, basis, iterations)
        y = np.empty_like(tokens)
        call(self.library.crma_adapter_forward, wide, tokens, prod(tokens.shape[:-1]), *layer, y)
        return self._rounded(y, x)

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> tuple[Array, Array, Array, Array]:
        (tokens, wide), (upstream, same) = self._tokens(x, "x"), self._tokens(cotangent, "cotangent")
        demand(upstream.shape == tokens.shape and wide == same, "cotangent is not shaped and typed as x")
        layer = self._layer(tokens, mix_logits, gate_logit, basis, iterations)
        results = [np.empty_like(tokens)]
        results += [np.empty(np.shape(value), np.float32) for value in (mix_logits, gate_logit, basis)]
        call(self.library.crma_adapter_vjp, wide, tokens, prod(tokens.shape[:-1]), *layer, upstream, *results)
        grad_x, grad_logits, grad_gate, grad_basis = results
        return self._rounded(grad_x, x), grad_logits, grad_gate, grad_basis

    def _tokens(self, x: Any, name: str) -> tuple[Array, bool]:
        """x, its 16 bits widened to float32, and whether it is float64."""
        wide = np.asarray(x).dtype.name == "float64"
        return taken(x, name, X_DTYPES, np.float64 if wide else np.float32), wide

    def _rounded(self, result: Array, x: Any) -> Array:
        with np.errstate(over="ignore"):  # MIX-10: in float16 what is too large becomes an infinity
            return result.astype(np.asarray(x).dtype, copy=False)

    def _layer(self, x: Array, mix_logits: Any, gate_logit: Any, basis: Any, iterations: Any) -> tuple[Any, ...]:
        logits, gate, rows = (
            taken(value, name)
            for value, name in ((mix_logits, "mix_logits"), (gate_logit, "gate_logit"), (basis, "basis"))
        )
        k = checked_iterations(iterations)
        demand(rows.ndim == 3 and rows.size > 0, "basis is not (n, r, d)")  # MIX-1
        n, r, d = rows.shape
        demand(n * r <= d, f"{n} streams of width {r} do not fit {d} dimensions")
        demand(logits.shape == (n, n), "mix_logits is not (n, n), as basis is (n, r, d)")
        demand(gate.size == 1, "gate_logit is not a single value")  # MIX-4
        demand(x.shape[-1:] == (d,), "x is not (..., d)")
        return logits, gate.item(), rows, np.asarray([n, r, d], np.uintp), k

    def load_state(self, data: bytes) -> tuple[Array, Array, Array, int]:
        content, sizes, starts = np.frombuffer(bytes(data), np.uint8), np.empty(5, np.uint64), np.empty(3, np.uint64)
        call(self.library.crma_load_state, content, len(content), sizes, starts)
        layers, n, r, d, iterations = map(int, sizes)
        logits, gates, bases = (
            np.frombuffer(data, "<f4", prod(shape), int(start)).reshape(shape).astype(np.float32)
            for shape, start in zip(((layers, n, n), (layers,), (layers, n, r, d)), starts, strict=True)
        )
        return logits, gates, bases, iterations


def make_backend() -> CppPort:
    return CppPort()
