"""Certificates, displacement and its budget on a stack of layers, and what is no state to measure or to go back to."""

import math
from typing import Any

import pytest
import torch

import reference
from backends.torch import AdapterState, CRMAAdapter, CRMABackbone
from backends.torch.conftest import disturb, same_state
from reference.errors import ConfigError, CRMAError, DegenerateBasisError, NonFiniteError, ShapeError


def backbone(layers: int = 3, streams: int = 2, rank: int = 2, d: int = 12) -> CRMABackbone:
    return CRMABackbone([CRMAAdapter(d, streams, rank, seed=layer) for layer in range(layers)])


def open_backbone(**named: Any) -> CRMABackbone:
    made = CRMABackbone([CRMAAdapter(12, 2, 2, seed=layer) for layer in range(3)], **named)
    with torch.no_grad():
        for gate in made.parameter_groups()["gate"]:
            gate.fill_(1.0)
    return made


def with_basis(place: Any, value: float) -> AdapterState:
    """The state of a backbone in which a place of the bases has this value."""
    state = backbone().state()
    state.bases[place] = value
    return state


@pytest.mark.clause("CERT-1", "CERT-2")
def test_certificates_are_those_of_the_reference() -> None:
    model = open_backbone()
    anchor = model.state()
    now, bounds, moved = disturb(model, 0.5).state(), model.certificate(anchor), model.displacement(anchor)
    assert (bounds.sum_error <= 5e-7).all()
    assert torch.equal(bounds.displacement, moved)
    assert model.certificate().displacement is None
    for layer in range(3):
        first, second = (reference.AdapterParameters(*(t[layer].numpy() for t in state)) for state in (anchor, now))
        largest, smallest = reference.adapter_spectrum(second)
        assert abs(float(bounds.largest[layer]) - largest) < 1e-6
        assert abs(float(bounds.smallest[layer]) - smallest) < 1e-6
        assert abs(float(moved[layer]) - reference.displacement(first, second)) < 1e-6
        assert moved[layer] > 1e-3


@pytest.mark.clause("CERT-1", "CERT-2")
def test_the_table_names_the_layers_with_the_worst_first() -> None:
    model = open_backbone(names=["blocks.0", "blocks.1", "blocks.2"])
    anchor = model.state()
    with torch.no_grad():
        model.parameter_groups()["basis"][1].add_(0.3)
        model.parameter_groups()["basis"][2].add_(0.1)
    measured, plain = model.certificate(anchor), model.certificate()
    rows = measured.worst_first()
    assert [(row.layer, row.name) for row in rows] == [(1, "blocks.1"), (2, "blocks.2"), (0, "blocks.0")]
    assert [row.smallest for row in rows] == [measured.smallest[row.layer] for row in rows]
    assert [row.smallest for row in plain.worst_first()] == sorted(plain.smallest.tolist())
    head, *lines = str(measured).splitlines()
    assert [line.split()[0] for line in (head, *lines)] == ["layer", *(row.name for row in rows)]
    assert f"{rows[0].displacement:.6f}" in lines[0]
    measured.mixing_norm[0] += 1e-3  # a bound that is broken comes before every displacement
    first = measured.worst_first()[0]
    assert (first.layer, rows[0].excess) == (0, 0)
    assert abs(first.excess - 1e-3) < 1e-5


@pytest.mark.clause("BUDGET-1", "BUDGET-2")
@pytest.mark.parametrize("size", [0.01, 0.5, 20.0])
def test_the_displacement_budget_holds_and_lets_alone_what_is_inside(size: float) -> None:
    model = open_backbone()
    anchor = model.state()
    moved, before = disturb(model, size).displacement(anchor), model.state()
    delta = float(moved.median())
    fraction, after = model.limit_displacement(anchor, delta), model.state()
    for layer in range(3):
        unchanged = [torch.equal(a[layer], b[layer]) for a, b in zip(after, before, strict=True)]
        inside = moved[layer] <= delta
        assert unchanged == [inside] * 3
        assert fraction[layer] == 1 if inside else 0 < fraction[layer] < 1
    assert (model.displacement(anchor) <= delta + 1e-6).all()
    assert 0 < int((fraction < 1).sum()) < 3


@pytest.mark.clause("BUDGET-1")
@pytest.mark.parametrize("gate", [-5.0, 1.0])
@pytest.mark.parametrize("factor", [0.0, -1e-6, -1.0])
def test_a_layer_whose_basis_goes_through_zero_is_pulled_back(gate: float, factor: float) -> None:
    """Up to a millionth of the anchor's basis, whose direction float32 must not lose: an open gate shows it."""
    model = backbone()
    with torch.no_grad():
        for parameter in model.parameter_groups()["gate"]:
            parameter.fill_(gate)
    anchor = model.state()
    with torch.no_grad():
        model.parameter_groups()["basis"][1].mul_(factor)
        model.parameter_groups()["mixing"][1].add_(torch.eye(2))  # at -1 alone, G is that of the anchor
    fraction = model.limit_displacement(anchor, 1e-3)
    assert fraction[1] < 1
    assert fraction[0] == fraction[2] == 1
    assert float(model.displacement(anchor).max()) <= 1e-3


@pytest.mark.clause("BUDGET-3", "ERR-4")
@pytest.mark.parametrize(
    ("anchor", "error", "words"),
    [
        (backbone(layers=2).state(), ShapeError, r"\(2, 2, 2\).*\(3, 2, 2\), as this model has it"),
        (backbone(streams=3).state(), ShapeError, "mix_logits of the anchor"),
        (backbone(rank=1).state(), ShapeError, "bases of the anchor"),
        (backbone(d=16).state(), ShapeError, "bases of the anchor"),
        (with_basis((1, 0, 0, 0), math.nan), NonFiniteError, "bases of the anchor"),
        (with_basis((1, 0, 0, 0), math.inf), NonFiniteError, "bases of the anchor"),
        (with_basis(1, 0.0), DegenerateBasisError, "layer 1"),
    ],
    ids=["layers", "streams", "rank", "hidden-size", "nan", "inf", "zero"],
)
def test_an_anchor_that_does_not_fit_is_refused(anchor: AdapterState, error: type[CRMAError], words: str) -> None:
    model = backbone()
    before = model.state()
    for use in (lambda: model.limit_displacement(anchor, 0.1), lambda: model.certificate(anchor)):
        with pytest.raises(error, match=words):
            use()
    assert same_state(model, before)


@pytest.mark.clause("BUDGET-3")
@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan, "1", None, True])
def test_a_budget_that_is_no_positive_number_is_refused(delta: Any) -> None:
    model = backbone()
    with pytest.raises(ConfigError, match="delta"):
        model.limit_displacement(model.state(), delta)


@pytest.mark.clause("CERT-1")
@pytest.mark.parametrize("factor", [0.0, 1e-24, 1e24])
def test_no_certificate_where_float32_cannot_hold_the_norm(factor: float) -> None:
    model = backbone()
    with torch.no_grad():
        model.parameter_groups()["basis"][2].mul_(factor)
    with pytest.raises(DegenerateBasisError, match="layer 2"):
        model.certificate()


@pytest.mark.clause("CERT-1", "ERR-4")
def test_a_state_that_is_not_finite_is_neither_loaded_nor_certified() -> None:
    model = backbone()
    before = model.state()
    with pytest.raises(NonFiniteError, match="bases"):
        model.load_state(with_basis((1, 0, 0, 0), math.nan))
    assert same_state(model, before)
    with torch.no_grad():
        model.parameter_groups()["mixing"][1][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="mix_logits"):
        model.certificate()


@pytest.mark.clause("BUDGET-1")
@pytest.mark.parametrize("which", ["now", "anchor"])
@pytest.mark.parametrize("name", ["mixing", "gate", "basis"])
def test_what_is_not_finite_is_never_taken_for_inside(which: str, name: str) -> None:
    """Not even a gate at infinity, at which the adapter is finite, with a budget that nothing exceeds."""
    model = open_backbone()
    good = model.state()
    with torch.no_grad():
        model.parameter_groups()[name][1].fill_(math.inf)
    bad = model.state()
    if which == "anchor":
        model.load_state(good)
    with pytest.raises(NonFiniteError):
        model.limit_displacement(good if which == "now" else bad, 1e6)
