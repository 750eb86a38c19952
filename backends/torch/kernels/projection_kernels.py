"""The Triton kernels of the Sinkhorn projection: a program holds BLOCK matrices, padded from n to N.

Numerics on a GPU, where the interpreter has NumPy's: ``exp`` of float32 is ``ex2.approx(x log2 e)``, with a relative
error of 2 ulp and |x| eps / 2 for the rounded product, which makes at most eps / (2 e) of the 1 that the largest term
is; ``log`` is libdevice's, to 1 ulp; a quotient is ``div.full``, to 2 ulp. The last softmax and the correction are
float64 throughout (spec, note on SINK-5).
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

# tl.max and tl.sum, without the detour that costs Triton's interpreter six times the arithmetic.
_max, _sum = tl.standard._elementwise_max, tl.standard._sum_combine


@triton.jit
def _start(logits_ptr, batch, n, BLOCK: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """``X = S - max S`` of the program's matrices; which of them hold what is not finite; and where they lie."""
    matrix = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None, None]
    side = tl.arange(0, N).to(tl.int64)
    row, column = side[None, :, None], side[None, None, :]
    square = (row < n) & (column < n)
    offsets = (matrix * n + row) * n + column
    inside = square & (matrix < batch)
    logits = tl.load(logits_ptr + offsets, mask=inside, other=0.0)
    # Counted, since a maximum hides NaN, and -inf alone would give finite values (SINK-9).
    is_bad = tl.where(tl.abs(logits) < float("inf"), 0, 1)
    bad = tl.reduce(tl.reduce(is_bad, 2, _sum, keep_dims=True), 1, _sum, keep_dims=True) > 0
    logits = tl.where(is_bad == 0, logits, 0.0)
    masked = tl.where(square, logits, float("-inf"))
    largest_logit = tl.reduce(tl.reduce(masked, 2, _max, keep_dims=True), 1, _max, keep_dims=True)
    # The padding is a block of its own, zeros inside and -inf beside it: a step then needs no mask and makes no NaN.
    x = tl.where(square, logits - largest_logit, tl.where((row < n) | (column < n), float("-inf"), 0.0))
    return x, bad, offsets, inside, matrix, row, column


@triton.jit
def _step(x, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]
    """X normalised over an axis, and the softmax, which the compiler leaves out where it is not used.

    It is e^X / sum rather than exp of the next X: one exp less, and it sums to 1.
    """
    x = x - tl.reduce(x, AXIS, _max, keep_dims=True)
    weights = tl.exp(x)
    total = tl.reduce(weights, AXIS, _sum, keep_dims=True)
    return x - tl.log(total), weights / total


@triton.jit
def _last_step(x):
    """The plain matrix P, the softmax over columns in float64."""
    weights = tl.exp(x.to(tl.float64) - tl.reduce(x.to(tl.float64), 1, _max, keep_dims=True))
    return weights / tl.reduce(weights, 1, _sum, keep_dims=True)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, mixing_ptr, batch, n, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr
):
    x, bad, offsets, inside, _, row, _ = _start(logits_ptr, batch, n, BLOCK, N)
    for _ in range(ITERATIONS - 1):
        x, _ = _step(x, 2)
        x, _ = _step(x, 1)
    x, _ = _step(x, 2)
    plain = _last_step(x)
    row_sums = tl.reduce(plain, 2, _sum, keep_dims=True)
    largest = tl.reduce(tl.where(row < n, row_sums, 0.0), 1, _max, keep_dims=True)
    mixing = plain / largest + (1.0 - row_sums / largest) / n
    mixing = tl.where(bad, float("nan"), mixing)
    tl.store(mixing_ptr + offsets, mixing.to(mixing_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, upstream_ptr, softmax_ptr, grad_ptr, batch, n,
    ITERATIONS: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """``softmax_ptr``: scratch (programs, 2K - 2, BLOCK, N, N), the softmax of each step but the last two.

    Padded, so that it is read and written whole; each program sees its own part alone, which stays in the L2 cache.
    """
    x, bad, offsets, inside, matrix, row, column = _start(logits_ptr, batch, n, BLOCK, N)

    # Forwards again.
    first = tl.program_id(0).to(tl.int64) * (2 * (ITERATIONS - 1) * BLOCK * N * N)
    local = (matrix - tl.program_id(0) * BLOCK) * (N * N) + (row * N + column)
    step_ptr = softmax_ptr + (first + local)
    for _ in range(ITERATIONS - 1):
        x, softmax = _step(x, 2)
        tl.store(step_ptr, softmax)
        x, softmax = _step(x, 1)
        tl.store(step_ptr + BLOCK * N * N, softmax)
        step_ptr += 2 * BLOCK * N * N
    x, last_rows = _step(x, 2)
    plain = _last_step(x)

    # Birkhoff correction and last column softmax.
    upstream = tl.load(upstream_ptr + offsets, mask=inside, other=0.0).to(tl.float64)
    row_sums = tl.reduce(plain, 2, _sum, keep_dims=True)
    masked_sums = tl.where(row < n, row_sums, 0.0)
    largest = tl.reduce(masked_sums, 1, _max, keep_dims=True)
    row_grad = tl.reduce(upstream, 2, _sum, keep_dims=True) / n
    per_row = tl.reduce(upstream * plain, 2, _sum, keep_dims=True) - row_sums * row_grad
    grad_largest = -tl.reduce(tl.where(row < n, per_row, 0.0), 1, _sum, keep_dims=True) / (largest * largest)
    # GRAD-2: the first of equal rows. Spelt out, since the tie-break of tl.argmax is another detour of the interpreter.
    candidates = tl.where(masked_sums == largest, -row, -N)
    is_first = row == -tl.reduce(candidates, 1, _max, keep_dims=True)
    grad_plain = (upstream - row_grad) / largest + tl.where(is_first, grad_largest, 0.0)
    grad64 = plain * (grad_plain - tl.reduce(plain * grad_plain, 1, _sum, keep_dims=True))

    # Backwards through the steps, the last row step first.
    grad = grad64.to(logits_ptr.dtype.element_ty)
    grad = grad - last_rows * tl.reduce(grad, 2, _sum, keep_dims=True)
    tl.debug_barrier()  # what one thread stored another may load
    for _ in range(ITERATIONS - 1):
        step_ptr -= 2 * BLOCK * N * N
        column_softmax = tl.load(step_ptr + BLOCK * N * N)
        row_softmax = tl.load(step_ptr)
        grad = grad - column_softmax * tl.reduce(grad, 1, _sum, keep_dims=True)
        grad = grad - row_softmax * tl.reduce(grad, 2, _sum, keep_dims=True)
    grad = tl.where(bad, float("nan"), grad)
    tl.store(grad_ptr + offsets, grad, mask=inside)
