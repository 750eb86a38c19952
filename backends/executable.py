"""A port that is a program of its own: one JSON object per line on its standard input, one on its standard output.

Request: ``{"id": 7, "function": "adapter_forward", "arguments": {"x": ARRAY, ..., "iterations": 20}}``
Reply: ``{"id": 7, "result": ...}`` or ``{"id": 7, "error": "what is wrong"}``, where

- ARRAY is ``{"shape": [2, 3], "data": [...]}``, row by row, in a request with ``"dtype": "float32"``; NaN and the
  infinities are the strings "NaN", "Infinity" and "-Infinity", since JSON has no numbers for them;
  a zero below 0 may be answered as "-0", which some writers of JSON can write as a text alone;
- the first request is ``describe``, whose result holds name, version, device and parameter_dtype, and may hold x_dtypes
  and optional: the names of further functions that the program has;
- ``adapter_vjp`` answers an object with x, mix_logits, gate_logit and basis;
- ``limit_displacement`` and ``limit_data_displacement`` answer mix_logits, gate_logit, basis and a number, fraction;
  ``stream_moment`` total and an integer, tokens;
- ``load_state`` gets ``{"data": "<base64>"}`` and answers mix_logits, gate_logits, bases and iterations;
- end of input means: exit. Standard error is free for messages, and its end is shown if the program fails.

Several threads may ask at once: each question waits for the answer to the one before.

Clauses: BACK-5, BACK-11, BACK-12, ERR-2.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from backends.interface import DTYPES, LIMITS, OPTIONAL, REQUIRED_ATTRIBUTES, Gradients, Limited, Moment, State, rounded
from backends.line_program import BrokenProgramError, LineProgram
from backends.watch import seconds_from
from reference.errors import BackendError, ConfigError, PortStoppedError

Array = NDArray[Any]
TIMEOUT = "CRMA_EXECUTABLE_TIMEOUT"  # seconds for one answer
DEFAULT_TIMEOUT = 60.0
_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
NOT_IN_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "-0": -0.0}


class PortRefusalError(BackendError):
    """The program answered with an error: it refuses the input."""


def is_command(name: str) -> bool:
    """Whether ``name`` is a path or a command of several words, and so no ``module:factory``."""
    return os.sep in name or " " in name.strip()


def start_executable(command: str) -> ExecutablePort:
    """Start ``command`` and ask it to describe itself.

    Raises: BackendError if there is no such program; PortStoppedError if it does not answer as it should.
    Clauses: BACK-5.
    """
    if os.name != "posix":
        raise _unusable(command, f"a system of the kind {os.name!r}, whose pipes cannot be waited for")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _unusable(command, str(error)) from error
    program = shutil.which(words[0])
    if program is None:
        path = Path(words[0])
        what = "a folder" if path.is_dir() else "a file that may not be executed" if path.exists() else "no program"
        raise _unusable(command, f"{what}, {words[0]!r}")
    return ExecutablePort(command, [program, *words[1:]])


class ExecutablePort:
    """NumPy arrays in and out; in between, lines of JSON. One process, one request at a time."""

    keeps_time = True  # by itself: nobody has to interrupt a call

    def __init__(self, command: str, words: list[str]) -> None:
        self.command, self._failure, self._calls = command, "", 0
        self._timeout, self._lock = seconds_from(TIMEOUT, DEFAULT_TIMEOUT), threading.Lock()
        try:
            self._program = LineProgram(words)
        except OSError as error:
            hint = ", or no interpreter as its first line names" if isinstance(error, FileNotFoundError) else ""
            raise _unusable(command, f"{words[0]}: {error.strerror}{hint}") from error
        description = self._call("describe")
        try:
            _check_description(description)
        except ValueError as error:
            self._stop(f"a description of itself with {error}")
        self.name, self.version, self.device, self.parameter_dtype = (description[key] for key in REQUIRED_ATTRIBUTES)
        self.x_dtypes = tuple(description.get("x_dtypes", ()))
        for function in description.get("optional", ()):
            setattr(self, function, getattr(self, f"_{function}"))

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        result = self._call("sinkhorn_projection", mix_logits=mix_logits, iterations=iterations)
        return self._array("sinkhorn_projection", result)

    def sinkhorn_projection_vjp(self, mix_logits: Array, cotangent: Array, iterations: int) -> Array:
        arguments = {"mix_logits": mix_logits, "cotangent": cotangent, "iterations": iterations}
        return self._array("sinkhorn_projection_vjp", self._call("sinkhorn_projection_vjp", **arguments))

    def adapter_forward(self, x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int) -> Array:
        parameters = {"mix_logits": mix_logits, "gate_logit": gate_logit, "basis": basis}
        result = self._call("adapter_forward", x=x, **parameters, iterations=iterations)
        return self._array("adapter_forward", result, np.asarray(x).dtype)

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        return self._gradients("adapter_vjp", *inputs)

    def load_state(self, data: bytes) -> State:
        result = self._call("load_state", data=base64.b64encode(data).decode())
        parts = (self._part("load_state", result, name) for name in State._fields[:3])
        logits, gates, bases = (self._array("load_state", part) for part in parts)
        iterations = self._part("load_state", result, "iterations")
        if type(iterations) is not int:
            self._stop(f"a result of load_state whose iterations is {_short(iterations)}")
        return State(logits, gates, bases, iterations)

    def _save_state(self, mix_logits: Array, gate_logits: Array, bases: Array, iterations: int) -> bytes:
        arrays = {"mix_logits": mix_logits, "gate_logits": gate_logits, "bases": bases}
        text = self._part("save_state", self._call("save_state", **arrays, iterations=iterations), "data")
        try:
            return base64.b64decode(text, validate=True)
        except (TypeError, ValueError) as error:
            self._stop(f"a result of save_state whose data is no base64 ({error})")

    def _adapter_autodiff(self, *inputs: Any) -> Gradients:
        return self._gradients("adapter_autodiff", *inputs)

    def _limit_displacement(self, *arguments: Any) -> Limited:
        return self._limited("limit_displacement", *arguments)

    def _limit_data_displacement(self, *arguments: Any) -> Limited:
        return self._limited("limit_data_displacement", *arguments)

    def _limited(self, function: str, *arguments: Any) -> Limited:
        result = self._call(function, **dict(zip(LIMITS[function], arguments, strict=True)))
        *arrays, fraction = (self._part(function, result, name) for name in Limited._fields)
        if type(fraction) not in (int, float):
            self._stop(f"a result of {function} whose fraction is {_short(fraction)}")
        return Limited._make([*(self._array(function, array) for array in arrays), float(fraction)])

    def _stream_moment(self, x: Array, basis: Array) -> Moment:
        result = self._call("stream_moment", x=x, basis=basis)
        total, tokens = (self._part("stream_moment", result, name) for name in Moment._fields)
        if type(tokens) is not int:
            self._stop(f"a result of stream_moment whose tokens is {_short(tokens)}")
        return Moment(self._array("stream_moment", total, np.float64), tokens)

    def _gradients(self, function: str, *inputs: Any) -> Gradients:
        names = ("x", "mix_logits", "gate_logit", "basis", "cotangent", "iterations")
        result = self._call(function, **dict(zip(names, inputs, strict=True)))
        dtypes = {"x": np.asarray(inputs[0]).dtype}
        parts = {name: self._part(function, result, name) for name in Gradients._fields}
        return Gradients(*(self._array(f"{function}, {name}", parts[name], dtypes.get(name)) for name in parts))

    def _array(self, what: str, encoded: Any, dtype: Any = None) -> Array:
        """Of the dtype of the parameters, if none is given."""
        try:
            array = _decode(encoded)
        except ValueError as error:
            self._stop(f"a result of {what} that is no array: {error}")
        return rounded(array, np.dtype(dtype or self.parameter_dtype))

    def _part(self, function: str, result: Any, field: str) -> Any:
        if not isinstance(result, dict) or field not in result:
            self._stop(f"a result of {function} without {field}: {_short(result)}")
        return result[field]

    def _call(self, function: str, **arguments: Any) -> Any:
        """The result of one request. Raises: PortRefusalError, PortStoppedError."""
        with self._lock:
            if self._failure:
                raise self._stopped_error()
            encoded = {name: _encode(name, value) for name, value in arguments.items()}
            self._calls += 1
            request = {"id": self._calls, "function": function, "arguments": encoded}
            try:
                answer = self._program.ask(json.dumps(request, allow_nan=False).encode() + b"\n", self._timeout)
                reply = _reply(answer, self._calls)
            except (BrokenProgramError, OSError) as error:
                self._stop(f"{error} at {function}")
            except BaseException as error:  # an answer that nobody waited for would be taken for that to the next
                self._stop_quietly(f"{type(error).__name__}, which interrupted it at {function}")
                raise
        if reply.get("error") is not None:
            raise PortRefusalError(
                f"{self.command}, {function}",
                got=f"the refusal {_short(reply['error'])}",
                allowed="an input that the program accepts",
                remedy="change the input, or the program if it should accept this one",
            )
        return reply["result"]

    def _stop(self, got: str) -> NoReturn:
        self._stop_quietly(got)
        raise self._stopped_error() from None

    def _stop_quietly(self, got: str) -> None:
        """From here on every call gives the same error: a program that failed once is not asked again."""
        said = self._program.last_words()
        self._program.kill()
        self._failure = got + (f"; it said {_short(said)}" if said else "")

    def _stopped_error(self) -> PortStoppedError:
        return PortStoppedError(
            self.command,
            got=self._failure,
            allowed="one line of JSON per request, as in spec/80-backend-interface.md",
            remedy=f"run it by hand and type a request; {TIMEOUT} sets the seconds it may take",
        )


def _check_description(description: Any) -> None:
    """Raises: ValueError, saying what is wrong."""
    if not isinstance(description, dict):
        raise ValueError(f"no attributes: {_short(description)}")
    for key in REQUIRED_ATTRIBUTES:
        if not isinstance(description.get(key), str) or not description[key]:
            raise ValueError(f"{key} {_short(description.get(key))}, which is no text")
    for key, allowed in (("x_dtypes", DTYPES), ("optional", OPTIONAL)):
        names = description.get(key, [])
        if not isinstance(names, list) or any(name not in allowed for name in names):
            raise ValueError(f"{key} {_short(names)}, which is no list of {', '.join(allowed)}")
    if description["parameter_dtype"] not in ("float32", "float64"):
        raise ValueError(f"parameter_dtype {_short(description['parameter_dtype'])}, which is none of float32, float64")


def _encode(name: str, value: Any) -> Any:
    if name == "data":
        return value
    if name in ("delta", "epsilon", "tokens", "iterations"):
        value = value.item() if isinstance(value, np.generic) else value
    if name in ("delta", "epsilon", "tokens"):
        return _NAMES[str(value)] if isinstance(value, float) and not math.isfinite(value) else value
    if name == "iterations":
        fraction = isinstance(value, float) and math.isfinite(value) and not value.is_integer()
        if not (value is None or isinstance(value, (int, str)) or fraction):
            raise ConfigError(
                "iterations",
                got=repr(value),
                allowed="an integer >= 1",
                remedy="write 20, not 20.0: JSON, and so the program, cannot tell the two apart",
            )
        return value
    array = np.asarray(value)
    values: list[Any] = array.astype(np.float64).ravel().tolist()
    if not np.isfinite(array).all():
        values = [number if math.isfinite(number) else _NAMES[str(number)] for number in values]
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": values}


def _decode(encoded: Any) -> Array:
    """An ARRAY, float64. Raises: ValueError."""
    if not isinstance(encoded, dict) or not {"shape", "data"} <= encoded.keys():
        raise ValueError(f"no object with shape and data: {_short(encoded)}")
    shape, values = encoded["shape"], encoded["data"]
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape {_short(shape)}")
    if not isinstance(values, list) or len(values) != math.prod(shape):
        got = f"{len(values)} numbers" if isinstance(values, list) else _short(values)
        raise ValueError(f"data {got}, where the shape {shape} has {math.prod(shape)}")
    if not set(map(type, values)) <= {float, int}:
        for value in values:
            if type(value) not in (float, int) and not (isinstance(value, str) and value in NOT_IN_JSON):
                raise ValueError(f"{_short(value)} in data, where numbers and {', '.join(NOT_IN_JSON)} are allowed")
        values = [NOT_IN_JSON[value] if isinstance(value, str) else value for value in values]
    try:
        return np.array(values, np.float64).reshape(shape)
    except OverflowError:
        raise ValueError("an integer in data that no float64 holds") from None


def _reply(answer: bytes, number: int) -> dict[str, Any]:
    """Raises: BrokenProgramError."""
    try:
        reply = json.loads(answer.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BrokenProgramError(f"an answer that is no line of JSON ({error}): {_short(answer)}") from error
    if not isinstance(reply, dict) or "id" not in reply or not {"result", "error"} & reply.keys():
        raise BrokenProgramError(f"an answer without id, or without result and error: {_short(answer)}")
    if type(reply["id"]) is not int or reply["id"] != number:
        raise BrokenProgramError(f"an answer to request {_short(reply['id'])}, where {number} was asked,")
    if reply.get("error") is None and "result" not in reply:
        raise BrokenProgramError(f"an answer with neither result nor error: {_short(answer)}")
    return reply


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write it as a string")


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        value = value[:400].decode(errors="replace")
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 120 else text[:117] + "...")


def _unusable(command: str, got: str) -> BackendError:
    return BackendError(
        f"backend {command!r}",
        got=got,
        allowed="a program that may be executed: a path, or a command of several words",
        remedy="chmod +x the file, or name its interpreter too, as in 'node port.js'",
    )
