"""What spec/40 promises of the range of float32, with a large x beside a small basis and the other way round.

y does not see the scale of A, so the results are those of ordinary numbers times powers of two, which no rounding sees.
"""

import numpy as np
import pytest

from backends import load_backend
from reference import AdapterConfig, init_parameters
from reference.errors import CRMAError

CONFIG = AdapterConfig(48, 3, 2)
#: exponents of 2 for x, A and the cotangent: within ||A|| >= 1e-9, ||A|| ||x|| <= 1e37 and ||A||^2 ||y'|| ||x|| <= 1e37
SCALES = [(110, -28, -80), (-80, -28, 110), (80, 28, -90), (-90, 28, 80), (0, -28, 0), (0, 28, 0)]


@pytest.mark.clause("MIX-2", "MIX-6", "GRAD-4", "GRAD-5", "GRAD-6")
@pytest.mark.parametrize("tokens", [1, 5, 200])
@pytest.mark.parametrize(("of_x", "of_basis", "of_cotangent"), SCALES)
@pytest.mark.parametrize("name", ["reference", "torch-cpu", "jax-cpu", "jax-pallas"])
def test_no_product_on_the_way_leaves_the_range(
    name: str, of_x: int, of_basis: int, of_cotangent: int, tokens: int
) -> None:
    try:
        backend = load_backend(name)
    except CRMAError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(0)
    x, cotangent = (rng.standard_normal((tokens, 48)).astype(np.float32) for _ in range(2))
    logits, gate, basis = (np.asarray(value, np.float32) for value in init_parameters(CONFIG, 0, gate_logit=1.0))
    logits = logits + rng.standard_normal(logits.shape).astype(np.float32)
    results = []
    for k, e, c in ((0, 0, 0), (of_x, of_basis, of_cotangent)):
        large, small, upstream = (a * np.float32(2.0**p) for a, p in ((x, k), (basis, e), (cotangent, c)))
        gradients = backend.adapter_vjp(large, logits, gate, small, upstream, 20)
        results.append([backend.adapter_forward(large, logits, gate, small, 20), *gradients])
    of_sums = of_x + of_cotangent
    powers = {"y": of_x, "x": of_cotangent, "logits": of_sums, "gate": of_sums, "basis": of_sums - of_basis}
    for (result, power), plain, scaled in zip(powers.items(), *results, strict=True):
        expected = np.float64(plain)
        found = np.float64(scaled) / 2.0**power
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=result)
