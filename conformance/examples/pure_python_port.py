"""A whole port in plain Python and its standard library: read it from top to bottom, then write it in your language.

It is given numbers and nested lists (``arrays = "lists"``) and returns such; a matrix is a list of rows. There are five
steps, in the order in which to write them; after each, README.md beside this file names the tests to run. Names are
those of spec/10-notation.md: S mix_logits, K iterations, A basis, x residual stream; ``grad_`` is a cotangent.
Clauses: BACK-1, BACK-3.
"""
# ruff: noqa: B905  lengths are checked where arrays come in

import hashlib
import json
import platform
import re
import struct
from math import exp, fsum, isfinite, log, prod
from operator import mul

# Step 1: the Sinkhorn projection (spec/30-sinkhorn-projection.md) ----------------------------------------------------


def project(logits, iterations):
    """S -> (log-matrices after every half step but the last, P as a list of columns, M)."""
    largest = max(map(max, logits))
    matrix = [[value - largest for value in row] for row in logits]  # SINK-3: the shift, by the maximum of all
    trace = []
    for half_step in range(2 * iterations - 1):  # SINK-3: rows, columns, rows ... exactly K times; zip(*) transposes
        matrix = [log_softmax(line) for line in (zip(*matrix) if half_step else matrix)]
        trace.append(matrix)
    columns = [softmax(column) for column in zip(*matrix)]  # SINK-3: the last column step; columns now sum to 1
    rows = list(zip(*columns))
    row_sums = [fsum(row) for row in rows]
    m, n = max(row_sums), len(rows)  # SINK-4: shrink until no row exceeds 1, then fill every row up evenly
    return trace, columns, [[p / m + (1 - rho / m) / n for p in row] for row, rho in zip(rows, row_sums)]


def log_softmax(line):
    top = max(line)  # SINK-3: first the maximum, then the logarithm; subtracted as one they would lose decimals
    shifted = [value - top for value in line]
    log_sum = log(fsum(map(exp, shifted)))
    return [value - log_sum for value in shifted]


def softmax(line):
    top = max(line)
    weights = [exp(value - top) for value in line]
    total = fsum(weights)  # SINK-5: fsum rounds once; float32 needs such care from n = 9 on
    return [weight / total for weight in weights]


def for_each_matrix(function, logits, iterations, *others):
    """SINK-1: leading axes are a batch of independent matrices, however deeply nested, and may be empty."""
    demand(type(iterations) is int and iterations >= 1, "iterations is no integer >= 1")  # SINK-2: nor 2.0, nor True
    if isinstance(logits, list) and all(isinstance(part, list) and not is_vector(part) for part in logits):
        return [for_each_matrix(function, one, iterations, *more) for one, *more in zip(logits, *others, strict=True)]
    n = shape(logits)[:1]
    demand(n and all(is_square(matrix, *n) for matrix in (logits, *others)), "a matrix is not (n, n)")
    demand(all(isfinite(value) for row in logits for value in row), "mix_logits holds NaN or an infinity")  # SINK-9
    return function(logits, iterations, *others)


def is_square(matrix, n):
    return isinstance(matrix, list) and len(matrix) == n and all(is_vector(row) and len(row) == n for row in matrix)


def is_vector(value):
    return len(shape(value)) == 1 and len(value) > 0


def shape(array):
    """Its length along every axis, as far as its first elements show."""
    return [len(array), *(shape(array[0]) if array else [])] if isinstance(array, list) else []


def demand(condition, otherwise):
    """What a port refuses it refuses by an exception; which one is its own affair."""
    if not condition:
        raise ValueError(otherwise)


# Step 2: its gradient (spec/45-gradients.md): the formulas of step 1, from the last to the first ---------------------


def project_vjp(logits, iterations, grad_mixing):
    """dL/dM -> dL/dS."""
    trace, columns, _ = project(logits, iterations)
    rows, n = list(zip(*columns)), len(columns)
    row_sums, grad_row_sums = [fsum(row) for row in rows], [sum(row) for row in grad_mixing]
    m = max(row_sums)
    # GRAD-2: M = P / m + (1 - rho / m) / n. (Sums of cotangents are plain: fsum refuses infinities, and they may come.)
    grad_m = (dot(row_sums, grad_row_sums) / n - sum(map(dot, grad_mixing, rows))) / m**2
    added = [-total / (n * m) for total in grad_row_sums]
    added[row_sums.index(m)] += grad_m  # GRAD-2: max is the first argmax, and index() finds the first
    grad = [[g / m + through_rho for g in row] for row, through_rho in zip(grad_mixing, added)]
    grad = [softmax_vjp(column, grad_column) for column, grad_column in zip(columns, zip(*grad))]
    for matrix in reversed(trace):  # GRAD-1: every half step by its own matrix. GRAD-3: the shift needs no term
        grad = [log_softmax_vjp(line, grad_line) for line, grad_line in zip(matrix, zip(*grad))]
    return grad


def softmax_vjp(probabilities, grad):
    mean = dot(probabilities, grad)
    return [p * (g - mean) for p, g in zip(probabilities, grad)]


def log_softmax_vjp(line, grad):
    total = sum(grad)
    return [g - exp(value) * total for value, g in zip(line, grad)]


def dot(left, right):
    return sum(map(mul, left, right))


# Step 3: the adapter (spec/40-residual-mixing.md) --------------------------------------------------------------------


class Layer:
    """What x meets: M, the rows of A as n r lists of d numbers, and alpha."""

    def __init__(self, logits, gate_logit, basis, iterations):
        self.n, self.r, self.d = shape(basis)  # MIX-1: three axes, or a ValueError
        self.rows = [row for stream in basis for row in stream]
        demand(is_square(logits, self.n), "mix_logits is not (n, n), as basis is (n, r, d)")  # MIX-1
        (gate_logit,) = gate_logit if isinstance(gate_logit, list) else [gate_logit]  # MIX-4: one gate per layer
        demand(isfinite(gate_logit) and all(isfinite(v) for row in self.rows for v in row), "not finite")  # MIX-11
        self.mixing = for_each_matrix(project, logits, iterations)[2]
        self.gate, self.closed = sigmoid(gate_logit), sigmoid(-gate_logit)
        gram = products(self.rows, self.rows)
        tau = sum(row[i] for i, row in enumerate(gram))
        demand(tau > 0, "basis is zero")  # MIX-6
        self.first = [[value / tau for value in row] for row in gram]  # MIX-6: A A^T / tau, its square and its fourth
        self.second = products(self.first, self.first)  # symmetric, so its rows are its columns
        self.fourth = products(self.second, self.second)
        self.eighth = sum(map(dot, self.fourth, self.fourth))  # the trace of the eighth power
        self.kappa = tau * self.eighth**0.125
        self.alpha = self.gate / self.kappa  # MIX-5

    def read(self, token):
        return [dot(row, token) for row in self.rows]  # MIX-2: z = A x, stream after stream

    def change(self, z, mixing):
        """MIX-3: sum_j M_ij z_j - z_i; stream i goes by row i of M, that is over its second index."""
        moved = [0.0] * len(z)
        for place in range(self.r):
            across = z[place :: self.r]  # one place of every stream
            moved[place :: self.r] = [dot(row, across) - own for row, own in zip(mixing, across)]
        return moved

    def write(self, token, moved):
        return [t + self.alpha * dot(column, moved) for t, column in zip(token, zip(*self.rows))]  # MIX-2

    def tokens(self, x):
        """MIX-1: the vectors of x (..., d), not looked into: what is not finite passes through (MIX-11)."""
        demand(isinstance(x, list) and (not is_vector(x) or len(x) == self.d), "x is not (..., d)")
        return [x] if is_vector(x) else [token for part in x for token in self.tokens(part)]


def nested_as(x, tokens):
    """The tokens, an iterator, in the places of those of x."""
    return next(tokens) if is_vector(x) else [nested_as(part, tokens) for part in x]


def sigmoid(value):
    decay = exp(-abs(value))  # never overflows
    return 1 / (1 + decay) if value >= 0 else decay / (1 + decay)


def products(left, right):
    """L R^T: every row of L times every row of R."""
    return [[dot(row, other) for other in right] for row in left]


# Step 4: its gradient (spec/45-gradients.md) -------------------------------------------------------------------------


def adapter_vjp(layer, x, logits, cotangent, iterations):
    tokens, upstream = layer.tokens(x), layer.tokens(cotangent)
    demand(shape(x) == shape(cotangent), "cotangent is not shaped as x")  # GRAD-9: also where it would broadcast
    z, w = [layer.read(token) for token in tokens], [layer.read(token) for token in upstream]
    moved = [layer.change(streams, layer.mixing) for streams in z]
    moved_back = [layer.change(streams, list(zip(*layer.mixing))) for streams in w]  # by the transpose of M
    # GRAD-7: the parameters serve all tokens, so their gradients are sums over tokens: products of whole columns.
    n, r, d = layer.n, layer.r, layer.d
    z_of, w_of, moved_of, back_of = (list(zip(*part)) or [()] * n * r for part in (z, w, moved, moved_back))
    x_of, upstream_of = (list(zip(*part)) or [()] * d for part in (tokens, upstream))
    by_place = [products(w_of[place::r], z_of[place::r]) for place in range(r)]
    grad_mixing = [[layer.alpha * sum(entry) for entry in zip(*rows)] for rows in zip(*by_place)]
    grad_alpha = sum(map(dot, w, moved))
    grad_kappa = -grad_alpha * layer.gate / layer.kappa**2  # GRAD-6: A also sets kappa, whose gradient is C^7 A
    seventh = list(zip(*layer.rows))
    for power in (layer.first, layer.second, layer.fourth):
        seventh = products(seventh, power)
    factor = 2 * grad_kappa * layer.eighth**0.125 / layer.eighth
    written, read = products(moved_of, upstream_of), products(back_of, x_of)  # GRAD-5: A writes D z, and has read x
    grad_rows = [
        [layer.alpha * (a + b) + factor * c for a, b, c in zip(*parts)] for parts in zip(written, read, zip(*seventh))
    ]
    return {
        "x": nested_as(x, map(layer.write, upstream, moved_back)),  # GRAD-4
        "mix_logits": for_each_matrix(project_vjp, logits, iterations, grad_mixing),
        "gate_logit": grad_alpha * layer.gate * layer.closed / layer.kappa,  # GRAD-6; 1 - gate would lose digits
        "basis": [grad_rows[i : i + r] for i in range(0, n * r, r)],
    }


# Step 5: the state file (spec/60-state-file.md) ----------------------------------------------------------------------

SPEC_MAJOR, SIZES = 0, ("hidden_size", "streams", "rank", "iterations", "layers")


def load_state(data):
    """STATE-1: 8 bytes with the length of the header, the header in JSON, the arrays. STATE-4: nothing is trusted."""
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else len(data)
    demand(length <= len(data) - 8, "cut off before the end of the header")
    try:
        header = json.loads(data[8 : 8 + length].decode())
        metadata = header.pop("__metadata__")
        config = json.loads(metadata["config"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no header of a state file ({type(error).__name__}: {error})") from None
    demand(all(isinstance(value, str) for value in metadata.values()), "metadata holds something that is not text")
    demand(metadata.get("format") == "crma", "another format")
    version = re.fullmatch("(0|[1-9][0-9]{0,8})[.](0|[1-9][0-9]{0,8})", metadata.get("spec_version", ""))  # STATE-7
    demand(version and int(version[1]) <= SPEC_MAJOR, "no spec_version, or a newer one")
    demand(isinstance(config, dict) and sorted(config) == sorted(SIZES), f"config is not of {SIZES}")  # STATE-8
    demand(all(type(config[size]) is int for size in SIZES), "a size in config that is no integer")
    d, n, r, iterations, layers = (config[size] for size in SIZES)
    demand(min(n, r, iterations, layers) >= 1 and n * r <= d, "sizes in config that no adapter has")
    shapes = {"mix_logits": [layers, n, n], "gate_logits": [layers], "bases": [layers, n, r, d]}
    demand(header.keys() == shapes.keys(), "other arrays than those of a state")
    spans = {name: checked_span(header[name], shape) for name, shape in shapes.items()}  # STATE-5: found by name
    position = 0
    for begin, end in sorted(spans.values()):
        demand(begin == position, "arrays overlap, or leave bytes between them")
        position = end
    demand(position == len(data) - 8 - length, "the arrays end before the file does, or behind it")
    content = [data[8 + length + begin : 8 + length + end] for begin, end in spans.values()]  # STATE-6: in this order
    checksum = hashlib.sha256(b"".join([metadata["config"].encode(), *content])).hexdigest()
    demand(metadata.get("content_sha256", checksum) == checksum, "content_sha256 is that of another content")
    return (*(floats(data, 8 + length + spans[name][0], shape) for name, shape in shapes.items()), iterations)


def checked_span(entry, shape):
    """[begin, end) of an array that is float32, shaped as config says, and as long as its shape."""
    offsets, same = entry.get("data_offsets"), json.dumps([entry.get("dtype"), entry.get("shape")])
    demand(same == json.dumps(["F32", shape]), f"an array is {same}, not F32 {shape}")
    demand(isinstance(offsets, list) and list(map(type, offsets)) == [int, int], "data_offsets are no two integers")
    demand(offsets[1] - offsets[0] == 4 * prod(shape), "data_offsets disagree with the shape")
    return offsets


def floats(data, start, shape):
    values = list(struct.unpack_from(f"<{prod(shape)}f", data, start))
    demand(all(map(isfinite, values)), "an array holds NaN or an infinity")
    for size in reversed(shape[1:]):  # row-major: the last axis is the innermost
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


# The whole: what --backend=conformance.examples.pure_python_port:make_backend is given (spec/80-backend-interface.md) -


class PurePythonPort:
    name, version, device = "pure-python-cpu", f"example, Python {platform.python_version()}", "cpu"  # BACK-4
    parameter_dtype, arrays = "float64", "lists"  # a number of Python is a float64
    x_dtypes = ("float64", "float32", "float16", "bfloat16")  # BACK-6, MIX-10: y is rounded once, where it goes out

    def sinkhorn_projection(self, mix_logits, iterations):
        return for_each_matrix(lambda *arguments: project(*arguments)[2], mix_logits, iterations)

    def sinkhorn_projection_vjp(self, mix_logits, cotangent, iterations):
        return for_each_matrix(project_vjp, mix_logits, iterations, cotangent)

    def adapter_forward(self, x, mix_logits, gate_logit, basis, iterations):
        layer = Layer(mix_logits, gate_logit, basis, iterations)
        return nested_as(x, (layer.write(t, layer.change(layer.read(t), layer.mixing)) for t in layer.tokens(x)))

    def adapter_vjp(self, x, mix_logits, gate_logit, basis, cotangent, iterations):
        layer = Layer(mix_logits, gate_logit, basis, iterations)
        return adapter_vjp(layer, x, mix_logits, cotangent, iterations)

    def load_state(self, data):
        return load_state(data)


def make_backend():
    return PurePythonPort()
