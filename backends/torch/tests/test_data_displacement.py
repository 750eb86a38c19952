"""The data budget on a stack of layers, against the reference layer by layer; and moments gathered in a model."""

from typing import Any

import numpy as np
import pytest
import torch

import reference
from backends.torch import AdapterState, CRMAAdapter, CRMABackbone, StreamMoments, attach_crma
from backends.torch.conftest import activate, disturb, same_state, tiny_model
from backends.torch.tests.test_certificates import backbone, open_backbone
from reference.errors import ConfigError, CRMAError, DegenerateBasisError, NonFiniteError, ShapeError

LAYERS, SIZE = 3, 12


def moved(model: CRMABackbone, size: float = 0.5) -> AdapterState:
    """Disturb mixing and gates, not the basis; returns the state before."""
    anchor = model.state()
    disturb(model, size)
    model.load_state(model.state()._replace(bases=anchor.bases))
    return anchor


def layer(state: AdapterState, index: int) -> reference.AdapterParameters:
    return reference.AdapterParameters(*(tensor[index].double().numpy() for tensor in state))


def tokens(seed: int = 0) -> torch.Tensor:
    """(L, tokens, d): few of them, so that a moment is not of full rank."""
    return torch.randn(LAYERS, 3, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(state: AdapterState, x: torch.Tensor) -> StreamMoments:
    each = [reference.stream_moment(x[i].numpy(), layer(state, i).basis) for i in range(LAYERS)]
    return StreamMoments(torch.from_numpy(np.stack([moment.total for moment in each])), each[0].tokens)


def reference_moment(moments: StreamMoments, index: int) -> reference.StreamMoment:
    return reference.StreamMoment(moments.totals[index].numpy(), moments.tokens)


@pytest.mark.clause("DATA-2")
def test_it_is_that_of_the_reference_and_below_the_worst_case() -> None:
    model = open_backbone()
    anchor = moved(model)
    now, moments = model.state(), moments_of(anchor, tokens())
    found = model.data_displacement(anchor, moments)
    for i in range(LAYERS):
        expected = reference.data_displacement(layer(anchor, i), layer(now, i), reference_moment(moments, i))
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)
        assert expected > 1e-3
    assert (found <= model.displacement(anchor)).all()


@pytest.mark.clause("DATA-3")
@pytest.mark.parametrize("size", [0.05, 0.5, 20.0])
def test_the_budget_holds_and_lets_alone_what_is_inside(size: float) -> None:
    model = open_backbone()
    anchor = moved(model, size)
    before, moments = model.state(), moments_of(anchor, tokens())
    distance = model.data_displacement(anchor, moments)
    epsilon = float(distance.median())
    fraction, after = model.limit_data_displacement(anchor, moments, epsilon), model.state()
    assert torch.equal(after.bases, anchor.bases)
    assert (model.data_displacement(anchor, moments) <= epsilon + 1e-6).all()
    for i in range(LAYERS):
        _, expected = reference.limit_data_displacement(
            layer(anchor, i), layer(before, i), reference_moment(moments, i), epsilon
        )
        if distance[i] <= epsilon:
            assert all(torch.equal(a[i], b[i]) for a, b in zip(after, before, strict=True))
        else:
            assert float(fraction[i]) == pytest.approx(expected, abs=2e-6)
    assert 0 < int((fraction < 1).sum()) < LAYERS


@pytest.mark.clause("DATA-3", "DATA-4")
def test_zeros_of_the_basis_keep_their_signs_and_another_basis_is_refused() -> None:
    model = open_backbone()
    with torch.no_grad():
        model.parameter_groups()["basis"][1][0, 0, 0] = -0.0
    anchor = moved(model)
    moments = moments_of(anchor, tokens())
    assert (model.limit_data_displacement(anchor, moments, 1e-6) < 1).all()
    assert torch.equal(model.state().bases.signbit(), anchor.bases.signbit())
    for change in (0.0, 1.0):
        with torch.no_grad():
            model.parameter_groups()["basis"][1][0, 0, 0] = change
        before = model.state()
        for use in (
            lambda: model.data_displacement(anchor, moments),
            lambda: model.limit_data_displacement(anchor, moments, 0.1),
        ):
            with pytest.raises(ConfigError, match="basis: got another one than the anchor's, in layer 1"):
                use()
        assert same_state(model, before)


@pytest.mark.clause("DATA-5", "ERR-4")
def test_what_is_no_moment_no_anchor_and_no_budget_is_refused() -> None:
    model = open_backbone()
    anchor = moved(model)
    good, before = moments_of(anchor, tokens()), model.state()
    lopsided, negative = good.totals.clone(), good.totals.clone()
    lopsided[1, 0, 1] += 1
    negative[2] -= torch.eye(4)
    wrong: list[tuple[AdapterState, StreamMoments, Any, type[CRMAError], str]] = [
        (anchor, good, 0.0, ConfigError, "epsilon"),
        (anchor, good, True, ConfigError, "epsilon"),
        (anchor, good._replace(tokens=0), 0.1, ConfigError, "tokens of the moment"),
        (anchor, good._replace(totals=good.totals[:2]), 0.1, ShapeError, r"\(3, 4, 4\), as this model"),
        (anchor, good._replace(totals=good.totals * float("nan")), 0.1, NonFiniteError, "moments"),
        (anchor, good._replace(totals=lopsided), 0.1, ConfigError, "moments of layer 1"),
        (anchor, good._replace(totals=negative), 0.1, ConfigError, "moments of layer 2"),
        (backbone(streams=3).state(), good, 0.1, ShapeError, "mix_logits of the anchor"),
        (anchor._replace(bases=0 * anchor.bases), good, 0.1, DegenerateBasisError, "basis of the anchor"),
    ]
    for start, moments, epsilon, error, words in wrong:
        with pytest.raises(error, match=words):
            model.limit_data_displacement(start, moments, epsilon)
        assert same_state(model, before)


@pytest.mark.clause("DATA-1")
def test_moments_are_gathered_from_the_tokens_that_count() -> None:
    model = tiny_model("llama").eval()
    shared = activate(attach_crma(model))
    ids = torch.arange(4, 16).reshape(2, 6)
    counted = torch.ones(2, 6, dtype=torch.long)
    counted[:, 0] = counted[1, 4:] = 0
    seen: list[torch.Tensor] = []
    hooks = [
        adapter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for adapter in shared.adapters
        if isinstance(adapter, CRMAAdapter)
    ]
    with torch.no_grad(), shared.gather_moments(counted) as gathered:
        model(input_ids=ids)
        once = gathered.moments()
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    assert once.tokens == 8
    assert gathered.moments().tokens == 16
    torch.testing.assert_close(gathered.moments().totals, once.joined(once).totals)
    for index, x in enumerate(seen[: len(shared.adapters)]):
        basis = layer(shared.state(), index).basis
        expected = reference.stream_moment(x[counted.bool()].double().numpy(), basis)
        torch.testing.assert_close(once.totals[index], torch.from_numpy(expected.total))
        assert expected.tokens == once.tokens
    with torch.no_grad():
        model(input_ids=ids)
        assert gathered.moments().tokens == 16, "what comes after the block counts for nothing"
        with pytest.raises(ShapeError, match="counted"), shared.gather_moments(counted[:1]):
            model(input_ids=ids)


@pytest.mark.clause("DATA-1")
def test_a_token_of_zeros_counts_and_one_that_is_not_finite_is_refused() -> None:
    model = backbone(layers=1)
    adapter: Any = model.adapters[0]
    with model.gather_moments(torch.ones(2)) as gathered:
        adapter(torch.zeros(2, SIZE))
    assert not gathered.moments().totals.any()
    assert gathered.moments().tokens == 2
    with model.gather_moments(torch.ones(1)) as gathered:
        adapter(torch.full((1, SIZE), float("inf")))
    with pytest.raises(NonFiniteError, match="residual stream"):
        gathered.moments()
