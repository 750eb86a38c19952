"""The covering design: every layout of the table, against the reference. Clauses: CONF-10, SINK-1 to MIX-11.

Each layout is tried in up to three variants, since what it has can hide what it does: see ``AdapterLayout.variants``.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from backends.interface import x_dtypes
from conformance.agreement import (
    CLAUSES,
    HALF,
    INPUTS,
    Comparison,
    adapter_change,
    adapter_gradients,
    assert_agrees_if_resolvable,
    assert_sums_to_one,
    cotangent_of,
    inputs_of,
    mixing_cotangent,
    projection,
    projection_gradient,
    settled_matrices,
)
from conformance.cases import SPECIAL, adapter_case, projection_case, spoilt
from conformance.design.axes import ADAPTER as ADAPTER_AXES
from conformance.design.axes import GATE, adapter_fits, projection_fits
from conformance.design.axes import PROJECTION as PROJECTION_AXES
from conformance.design.layouts import adapter_layout, adapter_layouts, projection_layout, projection_layouts, rows
from conformance.memory import laid_out
from conformance.profiles import slow
from conformance.strategies import SEEDS, free_layouts, random_cotangent
from conformance.tolerances import tolerance_for

LARGE = 20_000  # numbers of x or of S, from which on a layout is tried once
OVERFLOWS = 65520.0  # halfway between the largest float16 and the next power of two (MIX-10)
#: n, r, what d is more than n r, axes of the tokens: which of them is which, a port cannot tell by its size
COINCIDENT = [
    *((3, 2, 1, (3,)), (3, 2, 0, (6,)), (2, 2, 0, (2, 2)), (4, 1, 0, (4, 4)), (3, 3, 0, (9, 9)), (2, 1, 0, (2, 2, 2))),
    *((3, 2, 1, (2,)), (3, 2, 1, (7, 7)), (3, 3, 1, (3, 3, 3)), (5, 1, 0, (5, 1)), (2, 3, 0, (3, 2))),
]
MANY_AXES = [(1, 2, 1, 1, 2, 1, 1), (2, 1, 1, 1, 1, 1, 1, 3)]
LARGE_K = [128, 129, 256, 300, 1000]
#: of a layout in which nothing hides anything
PLAIN = {
    "n": 3,
    "r": 2,
    "d": 1,
    "leading": (5,),
    "K": 3,
    "logits": ("normal", 1.0),
    "gate": 1.0,
    "dtype": "float32",
    "x": 1.0,
    "memory": "C",
    "basis": "normal",
}
PROJECTION, ADAPTER = "sinkhorn_projection", "adapter y - x"


def check_projection(backend, layout, seed):
    """M, its sums and its norm. Returns ``mixing`` if it could be told from zeros."""
    case = projection_case(layout, seed)
    comparison = projection(backend, case, layout.iterations)
    assert np.asarray(comparison.actual).dtype == backend.parameter_dtype
    context = (layout, seed)
    assert (np.asarray(comparison.actual) >= 0).all(), f"SINK-7: {context}"
    assert_sums_to_one(backend, comparison.actual, "SINK-5", context)
    row = (PROJECTION, backend.parameter_dtype, "forward")
    return {"mixing"} if assert_agrees_if_resolvable(comparison, row, "SINK-4", context) else set()


def check_projection_gradient(backend, layout, seed):
    """S-bar of every matrix that has no kink nearby. Returns ``mix_logits`` if it could be told from zeros."""
    case = projection_case(layout, seed)
    cotangent, dtype = random_cotangent(case.values.shape, seed ^ 1), backend.parameter_dtype
    if layout.memory == "stride 0" and layout.leading:
        cotangent = np.repeat(cotangent[:1], len(cotangent), axis=0)
    settled = settled_matrices(backend, case, cotangent, layout.iterations)
    assume(settled.any() or not settled.size)
    actual, expected, scale = projection_gradient(backend, case, cotangent, layout.iterations)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    comparison = Comparison(actual[settled], expected[settled], scale)
    row = (PROJECTION, dtype, "gradient")
    return {"mix_logits"} if assert_agrees_if_resolvable(comparison, row, "GRAD-1", (layout, seed)) else set()


def check_adapter(backend, layout, seed):
    """y, or y - x. Returns ``y`` if it could be told from zeros."""
    case, dtype = adapter_case(layout, seed), offered(backend, layout.dtype)
    comparison = adapter_change(backend, case, layout.iterations, dtype)
    row = ("adapter y" if dtype in HALF else ADAPTER, precision(backend, dtype), "forward")
    if dtype == "float16":
        comparison = without_overflow(comparison, row)
    return {"y"} if assert_agrees_if_resolvable(comparison, row, "MIX-2", (layout, seed)) else set()


def check_adapter_gradient(backend, layout, seed):
    """The four cotangents; that of S where no kink is near. Returns the names of those that can be told from zeros."""
    case, dtype, context = adapter_case(layout, seed), offered(backend, layout.dtype), (layout, seed)
    of_mixing = mixing_cotangent(case, layout.iterations)
    settled = settled_matrices(backend, case.logits, of_mixing, layout.iterations).all()
    seen = set()
    for name, comparison in adapter_gradients(backend, case, layout.iterations, dtype).items():
        if name == "mix_logits" and not settled:
            assert np.isfinite(comparison.actual).all(), context
            continue
        row = (f"adapter {name}", precision(backend, dtype) if name == "x" else backend.parameter_dtype, "gradient")
        if assert_agrees_if_resolvable(comparison, row, CLAUSES[name], (name, *context)):
            seen.add(name)
    return seen


def check_special(backend, layout, seed):
    """A number in x that is not finite: it stays in its token, and in the cotangents of the parameters."""
    case, dtype = adapter_case(layout.visible(), seed), offered(backend, layout.dtype)
    x, *parameters = inputs_of(backend, case, dtype)
    bad, index = spoilt(x, layout.tokens, seed)
    bad, context = laid_out(bad, layout.memory), (layout, seed, index)
    y = np.asarray(backend.adapter_forward(bad, *parameters, layout.iterations)).astype(np.float64)
    clean = np.asarray(backend.adapter_forward(x, *parameters, layout.iterations)).astype(np.float64)
    assert not np.isfinite(y[index]), f"MIX-11: {context}"
    others = np.ones(x.shape, bool)
    others[index[:-1]] = False
    size = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True) * case.logits.condition
    row = tolerance_for("adapter y" if dtype in HALF else ADAPTER, precision(backend, dtype), "forward")
    within = np.maximum(np.abs(clean) * row.relative, row.atol * size)
    assert (np.abs(y - clean) <= within)[others].all(), f"MIX-11, other tokens: {context}"
    cotangent = cotangent_of(case, x)
    gradients = backend.adapter_vjp(bad, *parameters, cotangent, layout.iterations)
    for name in INPUTS[1:]:
        assert not np.isfinite(getattr(gradients, name)).all(), f"GRAD-8, {name}: {context}"
    expected = backend.adapter_vjp(x, *parameters, cotangent, layout.iterations).x.astype(np.float64)
    upstream = np.linalg.norm(cotangent.astype(np.float64), axis=-1, keepdims=True) * case.logits.condition
    within = np.maximum(np.abs(expected) * row.relative, row.atol * upstream)
    assert (np.abs(gradients.x.astype(np.float64) - expected) <= within).all(), f"GRAD-4: {context}"


def without_overflow(comparison, row):
    """Values beyond the largest float16 are infinities, and the others are compared."""
    actual, expected, scale = comparison
    beyond = np.abs(expected) >= OVERFLOWS
    near = np.abs(np.abs(expected) - OVERFLOWS) <= tolerance_for(*row).atol * np.broadcast_to(scale, expected.shape)
    infinite = np.copysign(np.inf, expected)
    assert ((actual == infinite) == beyond)[~near].all(), "MIX-10: what rounds beyond 65504 is an infinity of its sign"
    kept = ~beyond & ~near
    scale = np.where(kept, scale, 0.0)
    return Comparison(np.where(kept, actual, 0.0), np.where(kept, expected, 0.0), scale)


def offered(backend, dtype):
    """The dtype of a layout, or none where the port does not take it: x then has that of the parameters."""
    return dtype if dtype in x_dtypes(backend) else None


def precision(backend, dtype):
    """The dtype that y and x-bar are rounded to: that of x, unless the parameters' is coarser."""
    return dtype if dtype in ("float32", *HALF) else backend.parameter_dtype


def small(layouts, table):
    """The rows of quick layouts that are tried several times."""
    return [row for one, row in zip(layouts, table, strict=True) if one.quick and one.numbers <= LARGE]


def try_layout(check, backend, layout, seen=()):
    """``check(backend, layout, seed)`` for as many seeds as the size allows.

    Where ``layout`` hides nothing, seeds are drawn until what ``check`` returns is ``seen``: no layout passes without a
    comparison that zeros would fail.
    """
    profile = settings.get_profile(settings.get_current_profile_name())
    examples = 1 if layout.numbers > LARGE or profile.max_examples < 100 else 2
    must_be_seen = seen and layout == layout.visible() and layout.n > 1 and 0 not in layout.leading

    @given(seed=SEEDS)
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    def try_values(seed):
        found = check(backend, layout, seed)
        assume(found == seen or not must_be_seen)

    try_values()


def as_parameters(layouts, letter):
    """Tests of one layout go to one process, which compiles for it."""
    return [pytest.param(one, marks=pytest.mark.xdist_group(f"{letter}{one.number}"), id=str(one)) for one in layouts]


each_projection_layout = pytest.mark.parametrize("layout", as_parameters(projection_layouts(), "p"))
each_adapter_layout = pytest.mark.parametrize("layout", as_parameters(adapter_layouts(), "a"))
SPOILT = [one for one in adapter_layouts() if one.tokens in SPECIAL and 0 not in one.leading]


@pytest.mark.clause("CONF-10", "SINK-1", "SINK-2", "SINK-3", "SINK-4", "SINK-5", "SINK-7", "BACK-3")
@each_projection_layout
def test_projection(backend, layout):
    for variant in layout.variants():
        try_layout(check_projection, backend, variant, {"mixing"})


@pytest.mark.clause("CONF-10", "SINK-1", "GRAD-1", "GRAD-2", "BACK-3")
@each_projection_layout
def test_projection_gradient(backend, layout):
    for variant in layout.variants():
        try_layout(check_projection_gradient, backend, variant, {"mix_logits"})


@pytest.mark.clause("CONF-10", "MIX-1", "MIX-2", "MIX-5", "MIX-6", "MIX-10", "MIX-11", "BACK-3")
@each_adapter_layout
def test_adapter(backend, layout):
    for variant in layout.variants():
        try_layout(check_adapter, backend, variant, {"y"})


@pytest.mark.clause("CONF-10", "GRAD-1", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7", "BACK-3")
@each_adapter_layout
def test_adapter_gradient(backend, layout):
    for variant in layout.variants():
        try_layout(check_adapter_gradient, backend, variant, set(INPUTS))


def try_adapter(backend, **changed):
    """One plain layout with other sizes, in which nothing hides anything."""
    layout = adapter_layout(-1, {**PLAIN, **changed})
    try_layout(check_adapter, backend, layout, {"y"})
    try_layout(check_adapter_gradient, backend, layout, set(INPUTS))


def try_projection(backend, **changed):
    layout = projection_layout(-1, {**PLAIN, **changed})
    try_layout(check_projection, backend, layout, {"mixing"})
    try_layout(check_projection_gradient, backend, layout, {"mix_logits"})


@pytest.mark.clause("MIX-2", "GRAD-7")
@pytest.mark.parametrize("sizes", list(map(slow, COINCIDENT)), ids=str)
def test_sizes_that_coincide_are_not_exchanged(backend, sizes):
    """As many tokens as streams, ranks or hidden sizes; as many axes as a basis or a matrix has."""
    try_adapter(backend, **dict(zip(("n", "r", "d", "leading"), sizes, strict=True)))


@pytest.mark.clause("MIX-2", "GRAD-7")
@pytest.mark.parametrize("leading", list(map(slow, MANY_AXES)), ids=str)
def test_tokens_with_many_axes(backend, leading):
    try_adapter(backend, leading=tuple(leading))


@pytest.mark.clause("SINK-1", "GRAD-1")
@pytest.mark.parametrize("leading", list(map(slow, [(2,), (3,), (3, 3), (3, 3, 3), *MANY_AXES])), ids=str)
def test_a_batch_of_matrices_is_read_matrix_by_matrix(backend, leading):
    """As many as a matrix has rows; with as many axes as anybody counts."""
    try_projection(backend, leading=tuple(leading))


@pytest.mark.clause("SINK-2", "GRAD-1")
@pytest.mark.parametrize("iterations", list(map(slow, LARGE_K)))
def test_as_many_iterations_as_are_asked_for(backend, iterations):
    """K has no upper limit. With a triangular S every further one still shows, as 1 / K does."""
    try_projection(backend, leading=(), K=int(iterations), logits=("triangular", 5.0))


@pytest.mark.clause("CONF-10", "MIX-5", "GRAD-6")
@pytest.mark.parametrize("gate", [gate for gates in GATE.classes.values() for gate in gates])
@given(seed=SEEDS)
@settings(max_examples=3)
def test_every_gate(backend, gate, seed):
    """In one size, where nothing else can hide it; from -80 to 80 the cotangents of all parameters can be seen."""
    layout = adapter_layout(-1, {**PLAIN, "K": 20, "gate": gate})
    check_adapter(backend, layout, seed)
    seen = check_adapter_gradient(backend, layout, seed)
    assume(seen >= {"mix_logits", "gate_logit", "basis"} or abs(gate) > 80.0)


@pytest.mark.clause("CONF-10", "MIX-11", "GRAD-4", "GRAD-8")
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("layout", as_parameters(SPOILT, "a"))
def test_adapter_with_a_number_that_is_not_finite(backend, layout):
    try_layout(check_special, backend, layout)


@pytest.mark.clause("CONF-11", "SINK-4", "GRAD-1")
@given(row=free_layouts(PROJECTION_AXES, projection_fits, small(projection_layouts(), rows("projection"))), seed=SEEDS)
@settings(suppress_health_check=list(HealthCheck))
def test_any_layout_of_the_projection(backend, row, seed):
    """Those of the table with other values, or, with ``--profile random``, any that fits within its limits."""
    layout = projection_layout(-1, row)
    check_projection(backend, layout, seed)
    check_projection_gradient(backend, layout, seed)


@pytest.mark.clause("CONF-11", "MIX-2", "GRAD-7")
@given(row=free_layouts(ADAPTER_AXES, adapter_fits, small(adapter_layouts(), rows("adapter"))), seed=SEEDS)
@settings(suppress_health_check=list(HealthCheck))
def test_any_layout_of_the_adapter(backend, row, seed):
    """As for the projection."""
    layout = adapter_layout(-1, row)
    check_adapter(backend, layout, seed)
    check_adapter_gradient(backend, layout, seed)
