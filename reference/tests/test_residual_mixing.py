"""Why a layer has one gate. Clauses: MIX-4."""

import numpy as np
import pytest


@pytest.mark.clause("MIX-4")
def test_a_gate_per_stream_would_expand():
    """Theorem 2 needs one gate: with an open and a closed one, an exchange of two streams copies instead."""
    exchange, x = np.asarray([[0.0, 1.0], [1.0, 0.0]]), np.asarray([0.0, 1.0])
    gates = np.asarray([1.0, 0.0])
    y = x + gates * (exchange @ x - x)
    assert np.linalg.norm(y) == pytest.approx(np.sqrt(2.0))
    for gate in (0.0, 0.3, 1.0):
        assert np.linalg.norm(x + gate * (exchange @ x - x)) <= 1.0
