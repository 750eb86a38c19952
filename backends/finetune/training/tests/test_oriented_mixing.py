"""The experiment on oriented mixing: what it computes, that it is trained, and what is stored of it."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="pip install 'crma[bench]'")

from backends.torch import CRMAAdapter
from bench import oriented_mixing

D = 24


@pytest.fixture
def pair():
    """An adapter of CRMA with an open gate, and the same one oriented."""
    made = [CRMAAdapter(D, 3, 2, seed=4) for _ in range(2)]
    with torch.no_grad():
        for adapter in made:
            adapter.gate_logit.fill_(3.0)
            adapter.mix_logits.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    oriented_mixing.orient(made[1])
    return made


def test_without_a_turn_it_is_crma(pair):
    x = torch.randn(5, D)
    torch.testing.assert_close(pair[1](x), pair[0](x))
    assert (pair[1](x) - x).abs().max() > 1e-3


def test_it_amplifies_nothing_however_it_is_turned(pair):
    oriented, eye = pair[1], torch.eye(D)
    for scale in (1.0, 10.0, 1000.0):
        with torch.no_grad():
            oriented.turns.normal_(0, scale)
        turned = oriented.orientations()
        torch.testing.assert_close(turned.mT @ turned, torch.eye(2).expand(3, 3, 2, 2), atol=1e-4, rtol=0)
        assert torch.linalg.matrix_norm(oriented(eye), ord=2) <= 1 + 1e-5
        assert (oriented(eye) - pair[0](eye)).abs().max() > 1e-3


def test_a_run_trains_the_turns_and_stores_every_seed(tmp_path, tiny_model):
    out = tmp_path / "found.json"
    small = ["train=8", "holdout=4", "panel=0", "decision=0", "canaries=0", "max_tokens=256", "precision=float32"]
    command = ["--model", str(tiny_model), "--seeds", "3", "4", "--out", str(out), "--settings", *small]
    assert oriented_mixing.main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["seed"], row["condition"]) for row in rows] == [
        (seed, name) for seed in (3, 4) for name in ("frozen", "modular@none", "oriented")
    ]
    for frozen, crma, oriented in (rows[:3], rows[3:]):
        assert (frozen["drift"], frozen["advantage"]) == (0, 0)
        assert oriented["turned"] > 1e-3
        assert len({frozen["final_holdout"], crma["final_holdout"], oriented["final_holdout"]}) == 3
