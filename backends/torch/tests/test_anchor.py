"""Anchors of displacement and budget, and the certificate, on what is no usable state."""

from __future__ import annotations

import math

import pytest
import torch

from backends.torch import AdapterState, CRMAAdapter, CRMABackbone
from reference.errors import ConfigError, CRMAError, DegenerateBasisError, NonFiniteError, ShapeError


def backbone(layers: int = 3, streams: int = 2, rank: int = 2, d: int = 12) -> CRMABackbone:
    return CRMABackbone([CRMAAdapter(d, streams, rank, seed=layer) for layer in range(layers)])


def broken(state: AdapterState, kind: str) -> AdapterState:
    bases = state.bases.clone()
    if kind == "zero":
        bases[1] = 0.0
    else:
        bases[1, 0, 0, 0] = {"nan": math.nan, "inf": math.inf}[kind]
    return state._replace(bases=bases)


@pytest.mark.clause("BUDGET-3", "ERR-4")
@pytest.mark.parametrize(
    ("anchor", "error", "words"),
    [
        (backbone(layers=2).state(), ShapeError, r"\(2, 2, 2\).*\(3, 2, 2\), as this model has it"),
        (backbone(streams=3).state(), ShapeError, "mix_logits of the anchor"),
        (backbone(rank=1).state(), ShapeError, "bases of the anchor"),
        (backbone(d=16).state(), ShapeError, "bases of the anchor"),
        (broken(backbone().state(), "nan"), NonFiniteError, "bases of the anchor"),
        (broken(backbone().state(), "inf"), NonFiniteError, "bases of the anchor"),
        (broken(backbone().state(), "zero"), DegenerateBasisError, "layer 1"),
    ],
    ids=["layers", "streams", "rank", "hidden-size", "nan", "inf", "zero"],
)
def test_an_anchor_that_does_not_fit_is_refused(anchor: AdapterState, error: type[CRMAError], words: str) -> None:
    model = backbone()
    before = model.state()
    for use in (
        lambda: model.limit_displacement(anchor, 0.1),
        lambda: model.displacement(anchor),
        lambda: model.certificate(anchor),
    ):
        with pytest.raises(error, match=words):
            use()
    assert all(torch.equal(a, b) for a, b in zip(before, model.state(), strict=True))


@pytest.mark.clause("BUDGET-3")
@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan, "1", None, True])
def test_a_budget_that_is_no_positive_number_is_refused(delta: object) -> None:
    model = backbone()
    with pytest.raises(ConfigError, match="delta"):
        model.limit_displacement(model.state(), delta)  # type: ignore[arg-type]  # what is tested


@pytest.mark.clause("BUDGET-1")
def test_a_layer_whose_basis_became_zero_is_pulled_back() -> None:
    model = backbone()
    anchor = model.state()
    with torch.no_grad():
        model.parameter_groups()["basis"][1].zero_()
    fraction = model.limit_displacement(anchor, 1e-3)
    assert fraction[1] < 1
    assert fraction[0] == fraction[2] == 1
    assert float(model.displacement(anchor).max()) <= 1e-3


@pytest.mark.clause("CERT-1")
@pytest.mark.parametrize("factor", [0.0, 1e-24, 1e24])
def test_no_certificate_where_float32_cannot_hold_the_norm(factor: float) -> None:
    model = backbone()
    with torch.no_grad():
        model.parameter_groups()["basis"][2].mul_(factor)
    with pytest.raises(DegenerateBasisError, match="layer 2"):
        model.certificate()


@pytest.mark.clause("ERR-4")
def test_a_state_that_is_not_finite_is_not_loaded() -> None:
    model = backbone()
    before = model.state()
    with pytest.raises(NonFiniteError, match="bases"):
        model.load_state(broken(before, "nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.state(), strict=True))
