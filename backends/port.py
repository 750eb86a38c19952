"""Somebody's port behind the interface: what it asks for goes in, and plain NumPy arrays of its own come out.

Clauses: BACK-1, BACK-3, BACK-6, BACK-11, BACK-12.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.interface import (
    DTYPES,
    OPTIONAL,
    REQUIRED,
    REQUIRED_ATTRIBUTES,
    Gradients,
    Limited,
    Moment,
    State,
    dtype_named,
    rounded,
)
from backends.watch import Watch
from reference.errors import BackendError, CRMAError, PortResultError, ShapeError

Array = NDArray[Any]
ARRAYS = ("numpy", "lists")
#: what a port says of itself, which no call may change
REMEDY = "see spec/80-backend-interface.md"
ATTRIBUTES = (*REQUIRED_ATTRIBUTES, "x_dtypes", "arrays", "thread_safe")


class Port:
    """``raw``, an object with the attributes and functions of ``backends.interface.Backend``.

    With ``arrays = "lists"`` it is given numbers and nested lists, and its results are read as such. Results are
    handed on without a copy: whether a later call changes them is for the suite to see.

    Raises: BackendError, naming what is missing or wrong, here and in every function that raises. Whatever a port
    raises, an exit or a test framework's way to skip a test included, is the same refusal: it must not be able to leave
    out a test. A result that is none, and an attribute that a call has changed, is a PortResultError: no refusal.
    Clauses: BACK-1, BACK-3.
    """

    def __init__(self, raw: Any, source: str) -> None:
        if isinstance(raw, type):
            got, remedy = f"{source!r}, whose factory gave the class {raw.__name__}", "let the factory call the class"
            raise BackendError("backend", got=got, allowed="an object with the functions of a backend", remedy=remedy)
        missing = [item for item in (*REQUIRED_ATTRIBUTES, *REQUIRED) if not hasattr(raw, item)]
        missing += [item for item in REQUIRED if hasattr(raw, item) and not callable(getattr(raw, item))]
        if missing:
            remedy = "add what is missing; conformance/examples/pure_python_port.py is the shortest whole port"
            got = f"{source!r} without {', '.join(missing)}"
            raise BackendError("backend", got=got, allowed="everything in backends.interface.Backend", remedy=remedy)
        self.raw, self.source = raw, source
        self.name, self.version, self.device = (self._text(field) for field in ("name", "version", "device"))
        self.parameter_dtype = dtype_named(self._dtype("parameter_dtype", raw.parameter_dtype))
        names = getattr(raw, "x_dtypes", None) or (self.parameter_dtype,)
        if isinstance(names, str) or not isinstance(names, (tuple, list, set, frozenset)):
            raise self._wrong("x_dtypes", repr(names), f"a tuple of {', '.join(DTYPES)}")
        self.x_dtypes = tuple(self._dtype("x_dtypes", name) for name in names)
        self.arrays = getattr(raw, "arrays", "numpy")
        if self.arrays not in ARRAYS:
            raise self._wrong("arrays", repr(self.arrays), " or ".join(map(repr, ARRAYS)))
        self.thread_safe = getattr(raw, "thread_safe", True)
        if type(self.thread_safe) is not bool:
            raise self._wrong("thread_safe", repr(self.thread_safe), "True or False")
        self._said, self._watch = self._says(), None if getattr(raw, "keeps_time", False) else Watch(source)
        for function in OPTIONAL:  # present here exactly where the port has it
            if callable(getattr(raw, function, None)):
                setattr(self, function, getattr(self, f"_{function}"))

    def __repr__(self) -> str:
        return f"Port({self.source!r})"

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        logits = self._in(mix_logits, "mix_logits", (_last(mix_logits),) * 2)
        result = self._call("sinkhorn_projection", logits, _plain(iterations))
        return self._out("sinkhorn_projection", result, mix_logits, self.parameter_dtype)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        logits = self._in(mix_logits, "mix_logits", (_last(mix_logits),) * 2)
        upstream = self._in(cotangent, "cotangent", np.shape(mix_logits))
        result = self._call("sinkhorn_projection_vjp", logits, upstream, _plain(iterations))
        return self._out("sinkhorn_projection_vjp", result, mix_logits, self.parameter_dtype)

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        tokens = self._in(x, "x", (_last(basis),))
        result = self._call(
            "adapter_forward", tokens, self._in(mix_logits), self._in(gate_logit), self._in(basis), _plain(iterations)
        )
        return self._out("adapter_forward", result, x, np.asarray(x).dtype)

    def adapter_vjp(
        self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, cotangent: Array, iterations: int
    ) -> Gradients:
        return self._gradients("adapter_vjp", x, mix_logits, gate_logit, basis, cotangent, iterations)

    def load_state(self, data: bytes) -> State:
        *arrays, iterations = self._parts("load_state", self._call("load_state", data), State._fields)
        logits, gates, bases = (
            self._stored(f"load_state, {name}", array, axes)
            for name, array, axes in zip(State._fields, arrays, (3, 1, 4), strict=False)
        )
        iterations = _plain(iterations)
        if type(iterations) is not int:
            raise self._no_result("load_state, iterations", _shown(iterations), "an integer")
        return State(logits, gates, bases, iterations)

    def _save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        result = self._call("save_state", *map(self._in, (mix_logits, gate_logits, bases)), _plain(iterations))
        if not isinstance(result, (bytes, bytearray, memoryview)):
            raise self._no_result("save_state", _shown(result), "bytes")
        return bytes(result)

    def _adapter_autodiff(self, *inputs: Any) -> Gradients:
        return self._gradients("adapter_autodiff", *inputs)

    def _limit_displacement(self, *arguments: Any) -> Limited:
        return self._limited("limit_displacement", *arguments)

    def _limit_data_displacement(self, *arguments: Any) -> Limited:
        return self._limited("limit_data_displacement", *arguments)

    def _limited(self, function: str, *arguments: Any) -> Limited:
        given = [self._in(part) if isinstance(part, np.ndarray) else _plain(part) for part in arguments]
        *arrays, fraction = self._parts(function, self._call(function, *given), Limited._fields)
        if type(_plain(fraction)) not in (int, float):
            raise self._no_result(f"{function}, fraction", _shown(fraction), "a number")
        parts = zip(Limited._fields, arrays, arguments[3:6], strict=False)
        of_state = (self._out(f"{function}, {name}", part, like, self.parameter_dtype) for name, part, like in parts)
        return Limited._make([*of_state, float(fraction)])

    def _stream_moment(self, x: Array, basis: Array) -> Moment:
        result = self._call("stream_moment", self._in(x, "x", (_last(basis),)), self._in(basis))
        total, tokens = self._parts("stream_moment", result, Moment._fields)
        if type(_plain(tokens)) is not int:
            raise self._no_result("stream_moment, tokens", _shown(tokens), "an integer")
        like = np.empty((math.prod(np.shape(basis)[:-1]),) * 2)
        return Moment(self._out("stream_moment, total", total, like, np.dtype(np.float64)), int(tokens))

    def _gradients(self, function: str, *inputs: Any) -> Gradients:
        x, mix_logits, gate_logit, basis, cotangent, iterations = inputs
        tokens, upstream = self._in(x, "x", (_last(basis),)), self._in(cotangent, "cotangent", np.shape(x))
        parameters = map(self._in, (mix_logits, gate_logit, basis))
        result = self._call(function, tokens, *parameters, upstream, _plain(iterations))
        parts = zip(Gradients._fields, self._parts(function, result, Gradients._fields), inputs, strict=False)
        dtypes = {"x": np.asarray(x).dtype}
        return Gradients(
            *(self._out(f"{function}, {n}", part, like, dtypes.get(n, self.parameter_dtype)) for n, part, like in parts)
        )

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            call = getattr(self.raw, function)
            result = self._watch.call(call, function, *arguments) if self._watch else call(*arguments)
            said = self._says()
        except (KeyboardInterrupt, CRMAError):
            raise
        except BaseException as error:  # SystemExit, pytest's and unittest's skips
            raise BackendError(
                f"backend {self.source}, {function}",
                got=f"{type(error).__name__}: {error}",
                allowed="a result, or an error for an input that is to be refused",
                remedy="call it by hand; the error above is the port's own",
            ) from error
        for field, before, after in zip(ATTRIBUTES, self._said, said, strict=True):
            if before != after:
                raise self._no_result(f"{function}, after which {field}", after, f"{before}, as before it (BACK-1)")
        return result

    def _says(self) -> list[str]:
        return [str(getattr(self.raw, field, None)) for field in ATTRIBUTES]

    def _in(self, array: Array, name: str = "", shape: tuple[int, ...] = ()) -> Any:
        """What the port is given. ``shape``: the last axes that it needs, as a list may not be able to say."""
        if self.arrays == "numpy":
            return array
        array = np.asarray(array)
        if array.size == 0 and array.shape[-len(shape) :] != shape:
            # The list of an empty array has lost the axes after the 0, so the port cannot refuse this itself.
            raise ShapeError(
                name or "parameter", got=array.shape, allowed=f"(..., {shape})", remedy="see the interface"
            )
        return array.tolist()

    def _out(self, what: str, result: Any, like: Array, dtype: Any) -> Array:
        array = self._array(what, result, dtype)
        if self.arrays == "lists" and array.size == np.size(like) == 0:
            return array.reshape(np.shape(like))  # the list has lost the axes after the 0 again
        if array.shape != np.shape(like) or array.dtype != dtype:
            got, allowed = f"an array {array.shape} of {array.dtype}", f"an array {np.shape(like)} of {dtype}"
            raise self._no_result(what, got, allowed)
        return array

    def _stored(self, what: str, result: Any, axes: int) -> Array:
        """An array of a state: float32 as in the file, or in the dtype of the parameters."""
        array = self._array(what, result, self.parameter_dtype)
        if array.ndim != axes or array.dtype not in (np.dtype(np.float32), self.parameter_dtype):
            got = f"an array {array.shape} of {array.dtype}"
            raise self._no_result(what, got, f"an array of {axes} axes, float32 or {self.parameter_dtype}")
        return array

    def _array(self, what: str, result: Any, dtype: Any) -> Array:
        """A result as an array. Numbers in lists have no dtype of their own, and get ``dtype``."""
        try:
            if isinstance(result, np.ma.MaskedArray):
                raise TypeError("a masked array: what is masked is no number")
            if _holds_a_truth_value(result):
                raise TypeError("a truth value among numbers")
            array = np.asarray(result)
            if array.dtype.kind not in "fiu" and array.dtype.name not in DTYPES:
                raise TypeError(f"dtype {array.dtype}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever its __array__ raises, a skip included
            got = f"{_shown(result)} that is no array of numbers ({type(error).__name__}: {error})"
            raise self._no_result(what, got, f"arrays as {self.arrays}") from error
        return array if self.arrays == "numpy" else rounded(array, np.dtype(dtype))

    def _parts(self, function: str, result: Any, names: tuple[str, ...]) -> list[Any]:
        """The members of a result, in order; it is a sequence, or a mapping by name."""
        try:
            if isinstance(result, dict):
                missing = [name for name in names if name not in result]
                parts = [result[name] for name in names if name in result]
            else:
                parts = list(result) if isinstance(result, (tuple, list)) else []
                missing = [] if len(parts) == len(names) else [f"{len(names)} members"]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            got = f"{_shown(result)} that cannot be read ({type(error).__name__}: {error})"
            raise self._no_result(function, got, ", ".join(names)) from error
        if missing:
            raise self._no_result(function, f"{_shown(result)} without {', '.join(missing)}", ", ".join(names))
        return parts

    def _text(self, field: str) -> str:
        """An attribute for people to read. An object that stands for a device, say, is what it prints as."""
        value = getattr(self.raw, field)
        text = "" if value is None or callable(value) else " ".join(str(value).split())
        if not text:
            raise self._wrong(field, repr(value), "text")
        return text

    def _dtype(self, field: str, value: Any) -> str:
        """Its name. Types of other frameworks, such as torch.float32, name it last."""
        try:
            name = value if isinstance(value, str) else np.dtype(value).name
        except TypeError:
            name = str(value).rpartition(".")[2]
        allowed = DTYPES if field == "x_dtypes" else DTYPES[:2]
        if value is None or name not in allowed:
            raise self._wrong(field, repr(name), ", ".join(allowed) + " (MIX-10)")
        return name

    def _wrong(self, field: str, got: str, allowed: str) -> BackendError:
        return BackendError(f"backend {self.source}, {field}", got=got, allowed=allowed, remedy=REMEDY)

    def _no_result(self, what: str, got: str, allowed: str) -> PortResultError:
        return PortResultError(f"backend {self.source}, {what}", got=got, allowed=allowed, remedy=REMEDY)


def _shown(result: Any) -> str:
    return f"a result of type {type(result).__name__}"


def _holds_a_truth_value(result: Any) -> bool:
    """In lists, where NumPy would make a number of it without a word."""
    if isinstance(result, (list, tuple)):
        return any(map(_holds_a_truth_value, result))
    return isinstance(result, (bool, np.bool_))


def _last(array: Any) -> int:
    """Length of the last axis; 1 if there is none, since none may be empty."""
    return max(1, *np.shape(array)[-1:], 1)


def _plain(number: Any) -> Any:
    """A number of Python, such as K; a port in plain Python knows no others."""
    return number.item() if isinstance(number, np.generic) else number
