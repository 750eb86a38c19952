"""The state file of a stack: written and read in JAX, and the same bytes in PyTorch."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
pytest.importorskip("safetensors")

from backends.jax import CRMAAdapter
from backends.jax.state import load_state, save_state
from reference import AdapterConfig
from reference.errors import NonFiniteError, ShapeError, StateFileError

CONFIG = AdapterConfig(14, 3, 2, 7)


def make(layers: int | None = 4) -> CRMAAdapter:
    return CRMAAdapter.init(CONFIG, int(np.random.default_rng(0).integers(1 << 30)), layers)


@pytest.mark.clause("STATE-1", "STATE-2")
def test_a_stack_comes_back_bit_for_bit(tmp_path):
    stack = make()
    save_state(tmp_path / "a", stack, "a model", "its checksum")
    content = load_state(tmp_path / "a")
    assert (content.base_model, content.base_model_sha256) == ("a model", "its checksum")
    assert content.stack.iterations == 7
    for mine, theirs in zip(jax.tree.leaves(stack), jax.tree.leaves(content.stack), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.clause("STATE-2")
def test_pytorch_writes_the_same_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    from backends.torch import AdapterState
    from backends.torch import save_state as torch_save_state

    stack = make()
    save_state(tmp_path / "jax", stack, "a model")
    tensors = (torch.from_numpy(np.array(v)) for v in (stack.mix_logits, stack.gate_logit, stack.basis))
    torch_save_state(tmp_path / "torch", AdapterState(*tensors), CONFIG, "a model")
    assert (tmp_path / "jax").read_bytes() == (tmp_path / "torch").read_bytes()


@pytest.mark.clause("STATE-3", "STATE-4")
def test_bad_values_never_replace_a_good_file(tmp_path):
    path, stack = tmp_path / "state", make()
    save_state(path, stack)
    good = path.read_bytes()
    with pytest.raises(NonFiniteError, match="basis"):
        save_state(path, CRMAAdapter(stack.mix_logits, stack.gate_logit, stack.basis * np.nan))
    with pytest.raises(ShapeError, match="a stack"):
        save_state(path, make(None))
    assert path.read_bytes() == good
    path.write_bytes(good[:-1])
    with pytest.raises(StateFileError):
        load_state(path)
    with pytest.raises(StateFileError, match="No such file"):
        load_state(tmp_path / "none")


def test_a_stack_has_the_start_values_that_attach_crma_draws(tmp_path):
    pytest.importorskip("transformers")
    from backends.torch import attach_crma
    from backends.torch.conftest import tiny_model

    model = tiny_model("llama")
    state = attach_crma(model, basis="principal", skip_directions=1, gate_logit=-1.0, seed=5).state()
    writers = np.stack([block.mlp.down_proj.weight.detach().double().numpy() for block in model.model.layers])
    layers, n, r, d = state.bases.shape
    stack = CRMAAdapter.init(AdapterConfig(d, n, r), 5, layers, writers=writers, skip_directions=1, gate_logit=-1.0)
    for mine, theirs in zip((stack.mix_logits, stack.gate_logit, stack.basis), state, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-6, atol=1e-7)
