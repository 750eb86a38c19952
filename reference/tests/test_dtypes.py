"""Which arrays the reference takes: floats of 16 bits or more, and numbers that have no dtype."""

from typing import Any

import numpy as np
import pytest

import reference
from reference.errors import DtypeError

X, LOGITS, GATE, BASIS = [1.0, 2.0, 4.0], [[0.0, 1.0], [2.0, 4.0]], 0.5, [[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]]
REFUSED = ("int64", "uint8", "bool", "complex128", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "object", "str")


def cast(values: Any, dtype: str) -> np.ndarray:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))


def call(**changes: Any) -> np.ndarray:
    inputs: dict[str, Any] = {
        "x": X,
        "mix_logits": LOGITS,
        "gate_logit": GATE,
        "basis": BASIS,
        "cotangent": X,
    } | changes
    parameters = reference.AdapterParameters(inputs["mix_logits"], inputs["gate_logit"], inputs["basis"])
    reference.adapter_vjp(inputs["x"], parameters, inputs["cotangent"], 3)
    return reference.adapter_forward(inputs["x"], parameters, 3)


@pytest.mark.clause("MIX-10", "ERR-1")
@pytest.mark.parametrize("dtype", REFUSED)
@pytest.mark.parametrize("field", ["x", "mix_logits", "gate_logit", "basis", "cotangent"])
def test_other_dtypes_are_refused_by_name(field: str, dtype: str) -> None:
    value = {"mix_logits": LOGITS, "gate_logit": GATE, "basis": BASIS}.get(field, X)
    with pytest.raises(DtypeError, match=f"{field}: got dtype {dtype}") as caught:
        call(**{field: cast(value, dtype)})
    assert isinstance(caught.value, TypeError)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floats_and_lists_are_the_same_numbers(dtype: str) -> None:
    expected = call()
    assert np.abs(expected - X).max() > 0.01
    np.testing.assert_array_equal(call(x=cast(X, dtype), mix_logits=cast(LOGITS, dtype)), expected)
    np.testing.assert_array_equal(call(x=[1, 2, 4], mix_logits=[[0, 1], [2, 4]]), expected)


@pytest.mark.clause("MIX-10")
@pytest.mark.parametrize("bad", [True, [[True]], [[1j]], "text", None, {}])
def test_what_is_no_real_number_is_refused(bad: Any) -> None:
    with pytest.raises(DtypeError, match="mix_logits: got dtype"):
        reference.sinkhorn_projection(bad)
    with pytest.raises(DtypeError, match="cotangent: got dtype"):
        reference.sinkhorn_projection_vjp(LOGITS, bad)
