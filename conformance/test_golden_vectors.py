"""A port reproduces the golden vectors: forward, gradients, certificates, state files. Clauses: VEC-2..VEC-5, VEC-7."""

import numpy as np
import pytest

from backends.interface import dtype_named
from conformance.agreement import fails, fails_or_nowhere_finite, require_x_dtype
from conformance.compare import assert_close
from conformance.golden_vectors.format import load_files, read
from conformance.tolerances import Tolerance

CASES = list(read(load_files()))
PARAMETERS = ("mix_logits", "gate_logit", "basis")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero")


def named_cases(*operations):
    """``pytest.param`` for each case of these operations, with its clauses as marks."""
    return [
        pytest.param(case, id=case.about["name"], marks=pytest.mark.clause(*case.about["clauses"]))
        for case in CASES
        if case.about["operation"] in operations
    ]


def inputs_of(backend, case):
    """In the port's own dtypes; an x of 16 bits as it is, where the port takes it."""
    inputs = {name: array.values.astype(backend.parameter_dtype) for name, array in case.of_role("input").items()}
    name = {"<f2": "float16", "<bf16": "bfloat16"}.get(case.arrays["x"].entry["dtype"]) if "x" in inputs else None
    if name:
        require_x_dtype(backend, name)
        inputs["x"] = case.arrays["x"].values.view(dtype_named(name))
    return inputs


def answer(case, call):
    """What a call gives, or None if it is refused as it has to be. The header says where NaN may stand for that."""
    if "refuse" not in case.about:
        return call()
    refused = fails_or_nowhere_finite(lambda: listed(call())) if case.about.get("or_nan") else fails(call)
    assert refused, f"{case.about['clauses']}: accepted, although {case.about['refuse']}"
    return None


def listed(result):
    return result if isinstance(result, tuple) else [result]


def assert_reproduced(backend, case, actual):
    """Each output within the bounds of its header, for the dtype that the port computes in; and what is not finite."""
    for name, which in case.about.get("not_finite", {}).items():
        finite = np.isfinite(np.asarray(actual[name]).astype(np.float64))
        assert not (finite.any() if which == "all" else finite.all()), f"{case.about['clauses']}: {name} is finite"
    outputs = case.of_role("output")
    actual = {name: value for name, value in actual.items() if name in outputs}
    assert set(actual) == set(outputs), "the test and the vector speak of the same outputs"
    assert outputs or case.about.get("not_finite"), "there is something to compare"
    for name, (expected, entry) in outputs.items():
        for dtype, bound in entry["tolerance"].items():
            if dtype not in (backend.parameter_dtype.name, "float16", "bfloat16"):
                continue
            reason = f"row {entry['row']!r} of the table, times the scale of {case.about['name']!r}"
            row = Tolerance(dtype, 0, bound["relative"], bound["absolute"], reason, entry["row"])
            assert_close(actual[name], expected, row, clause="VEC-2", context=(case.group, name))


def dense_map(backend, case, prefix=""):
    """G transposed, (d, d), in float64: what the port makes of each unit vector."""
    inputs = inputs_of(backend, case)
    parameters = [inputs[prefix + name] for name in PARAMETERS]
    unit_vectors = np.eye(parameters[-1].shape[-1], dtype=parameters[-1].dtype)
    result = backend.adapter_forward(unit_vectors, *parameters, case.about["iterations"])
    return np.asarray(result).astype(np.float64)


@pytest.mark.clause("VEC-2", "VEC-4", "VEC-7", "SINK-2", "SINK-3", "SINK-4", "SINK-5", "SINK-9")
@pytest.mark.parametrize("case", named_cases("sinkhorn_projection", "sinkhorn_projection_sums"))
def test_golden_projection(backend, case):
    inputs, k = inputs_of(backend, case), case.about["iterations"]
    mixing = answer(case, lambda: np.asarray(backend.sinkhorn_projection(**inputs, iterations=k)))
    if "mixing" in case.arrays:
        assert_reproduced(backend, case, {"mixing": mixing})
    elif mixing is not None:
        exact = mixing.astype(np.longdouble)
        assert (mixing >= 0).all()
        assert_reproduced(backend, case, {"row_sums": exact.sum(axis=-1), "column_sums": exact.sum(axis=-2)})


@pytest.mark.clause("VEC-2", "VEC-4", "VEC-7", "GRAD-1", "GRAD-2", "GRAD-8", "GRAD-9")
@pytest.mark.parametrize("case", named_cases("sinkhorn_projection_vjp"))
def test_golden_projection_gradient(backend, case):
    inputs, k = inputs_of(backend, case), case.about["iterations"]
    gradient = answer(case, lambda: backend.sinkhorn_projection_vjp(**inputs, iterations=k))
    if gradient is not None:
        assert_reproduced(backend, case, {"grad_mix_logits": gradient})


@pytest.mark.clause("VEC-2", "VEC-4", "VEC-7", "MIX-2", "MIX-3", "MIX-6", "MIX-10", "MIX-11")
@pytest.mark.parametrize("case", named_cases("adapter_forward"))
def test_golden_adapter(backend, case):
    inputs, k = inputs_of(backend, case), case.about["iterations"]
    y = answer(case, lambda: np.asarray(backend.adapter_forward(**inputs, iterations=k)))
    if y is None:
        return
    assert y.dtype == inputs["x"].dtype
    wide, x = y.astype(np.float64), inputs["x"].astype(np.float64)
    assert_reproduced(backend, case, {"y": wide, "y_minus_x": wide - x})


@pytest.mark.clause("VEC-2", "VEC-4", "VEC-7", "GRAD-4", "GRAD-5", "GRAD-6", "GRAD-7", "GRAD-8", "GRAD-9")
@pytest.mark.parametrize("case", named_cases("adapter_vjp"))
def test_golden_adapter_gradient(backend, case):
    inputs, k = inputs_of(backend, case), case.about["iterations"]
    gradients = answer(case, lambda: backend.adapter_vjp(**inputs, iterations=k))
    if gradients is None:
        return
    actual = {f"grad_{name}": np.asarray(getattr(gradients, name)) for name in PARAMETERS}
    grad_x, cotangent = np.asarray(gradients.x).astype(np.float64), inputs["cotangent"].astype(np.float64)
    actual |= {"grad_x": grad_x, "grad_x_minus_cotangent": grad_x - cotangent}
    for name in PARAMETERS:
        assert actual[f"grad_{name}"].shape == inputs[name].shape
    assert_reproduced(backend, case, actual)


@pytest.mark.clause("VEC-2", "CERT-1")
@pytest.mark.parametrize("case", named_cases("adapter_spectrum"))
def test_golden_spectrum(backend, case):
    """Of the port's own map: the interface has no certificates, and needs none to be measured."""
    singular_values = np.linalg.svd(dense_map(backend, case), compute_uv=False)
    assert_reproduced(backend, case, {"spectrum": singular_values[[0, -1]]})


@pytest.mark.clause("VEC-2", "CERT-2")
@pytest.mark.parametrize("case", named_cases("displacement"))
def test_golden_displacement(backend, case):
    change = dense_map(backend, case) - dense_map(backend, case, "other_")
    assert_reproduced(backend, case, {"displacement": np.linalg.norm(change, 2)})


@pytest.mark.clause("VEC-5", "STATE-1", "STATE-2", "STATE-4", "STATE-5", "STATE-6", "STATE-7", "STATE-8")
@pytest.mark.parametrize("case", named_cases("state_file"))
def test_golden_state_file(backend, case):
    state = answer(case, lambda: backend.load_state(case.file))
    if state is None:
        return
    assert state.iterations == case.about["iterations"]
    assert_reproduced(backend, case, {name: np.asarray(getattr(state, name)) for name in case.of_role("output")})
