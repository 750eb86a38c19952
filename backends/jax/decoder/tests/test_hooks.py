"""LoRA as PEFT computes it, an adapter behind each block, and recomputation, on top of the unchanged decoder."""

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")

import jax.numpy as jnp

from backends.jax import CRMAAdapter
from backends.jax.backend import COMPILER_OPTIONS as QUICK
from backends.jax.data_displacement import gather_totals
from backends.jax.decoder import generate, logits, loss
from backends.jax.decoder.tests.conftest import TOLERANCE
from reference import AdapterConfig, AdapterParameters, adapter_forward, stream_moment
from reference.errors import ConfigError, ShapeError

RANK = 4
STATIC = ("adapter", "remat")
scores = jax.jit(logits, static_argnames=STATIC, compiler_options=QUICK)


def blend(matrix, x):
    """A linear adapter, (d, d), that keeps half of the residual stream."""
    return 0.5 * x + x @ matrix.astype(x.dtype)


def draw_lora(config, rng):
    def factors(outputs, inputs):
        down = rng.normal(size=(config.layers, RANK, inputs)) / inputs**0.5
        return down.astype(np.float32), rng.normal(size=(config.layers, outputs, RANK)).astype(np.float32)

    return {path: (*factors(*shape), 0.5) for path, shape in config.projections.items()}


def draw_matrices(config, rng):
    d = config.hidden_size
    return (rng.normal(size=(config.layers, d, d)) / d**0.5).astype(np.float32)


@pytest.fixture
def peft_model():
    """A function that builds a PEFT model with given factors around a fresh copy of a case's model."""
    peft = pytest.importorskip("peft")
    from backends.jax.decoder.tests.conftest import build_model

    def build(name, lora):
        settings = peft.LoraConfig(r=RANK, lora_alpha=RANK // 2, target_modules="all-linear", lora_dropout=0.0)
        model = peft.get_peft_model(build_model(name), settings)
        used = set()
        with torch.no_grad():
            for path, module in model.named_modules():
                if hasattr(module, "lora_A"):
                    layer, _, projection = path.split(".layers.")[1].partition(".")
                    down, up, _ = lora[projection]
                    module.lora_A.default.weight.copy_(torch.from_numpy(down[int(layer)]))
                    module.lora_B.default.weight.copy_(torch.from_numpy(up[int(layer)]))
                    used.add(projection)
        assert used == set(lora)
        return model

    return build


@pytest.mark.parametrize("name", ["gemma2", "phi4"])
def test_lora_equals_peft_in_logits_and_gradients(case_of, peft_model, name):
    case, rng = case_of(name), np.random.default_rng(1)
    lora = draw_lora(case.config, rng)
    ids = rng.integers(3, case.config.vocab_size, (2, 30))
    model = peft_model(name, lora)
    result = model(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids))
    result.loss.backward()

    def loss_of(factors):
        tuned = {path: (*pair, 0.5) for path, pair in factors.items()}
        return loss(case.params, case.config, ids, ids, lora=tuned)

    factors = {path: pair[:2] for path, pair in lora.items()}
    value, gradients = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)(factors)
    assert float(value) == pytest.approx(result.loss.item(), rel=1e-5)
    expected, actual = result.logits.detach().numpy(), np.asarray(scores(case.params, case.config, ids, lora=lora))
    assert np.abs(actual - expected).max() < TOLERANCE * np.abs(expected).max()
    effect = np.abs(actual - np.asarray(scores(case.params, case.config, ids)))
    assert effect.max() > 0.1 * np.abs(expected).max()
    compared = 0
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            layer, _, projection = path.split(".layers.")[1].partition(".")
            for side, weight in enumerate((module.lora_A.default.weight, module.lora_B.default.weight)):
                gradient = np.asarray(gradients[projection][side][int(layer)])
                largest = np.abs(weight.grad.numpy()).max()
                assert np.abs(gradient - weight.grad.numpy()).max() < 10 * TOLERANCE * largest
                compared += 1
    assert compared == 2 * case.config.layers * len(lora)


def test_an_adapter_sees_what_each_block_gives(case_of):
    case, rng = case_of("gemma2"), np.random.default_rng(2)
    matrices = draw_matrices(case.config, rng)
    ids = rng.integers(3, case.config.vocab_size, (2, 30))

    def hook(matrix, module, args, output):
        return 0.5 * output + output @ torch.from_numpy(matrix)

    blocks = case.model.model.layers
    hooks = [block.register_forward_hook(partial(hook, m)) for block, m in zip(blocks, matrices, strict=True)]
    with torch.no_grad():
        expected = case.model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    for handle in hooks:
        handle.remove()
    actual = np.asarray(scores(case.params, case.config, ids, adapter=blend, adapter_params=matrices))
    assert np.abs(actual - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.clause("DATA-1")
def test_moments_are_those_of_what_each_block_gives_for_the_tokens_that_count(case_of):
    case, rng = case_of("gemma2"), np.random.default_rng(7)
    sizes = AdapterConfig(case.config.hidden_size, 2, 2)
    stack = CRMAAdapter.init(sizes, 0, case.config.layers, gate_logit=1.0)
    ids, mask = rng.integers(3, case.config.vocab_size, (2, 12)), np.ones((2, 12), int)
    mask[1, 8:] = 0
    counted = mask * (np.arange(12) > 0)
    seen = []

    def hook(index, module, args, output):
        seen.append(output.numpy()[counted > 0])
        parameters = AdapterParameters(*(np.asarray(leaf[index]) for leaf in jax.tree.leaves(stack)))
        return torch.from_numpy(adapter_forward(output.numpy(), parameters).astype(np.float32))

    hooks = [block.register_forward_hook(partial(hook, i)) for i, block in enumerate(case.model.model.layers)]
    with torch.no_grad():
        case.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), use_cache=False)
    for handle in hooks:
        handle.remove()
    gather = jax.jit(gather_totals, compiler_options=QUICK)
    totals = gather(case.params, case.config, ids, mask, counted, stack.prepared())
    for found, x, basis in zip(np.asarray(totals), seen, np.asarray(stack.basis), strict=True):
        expected = stream_moment(x, basis)
        assert expected.tokens == counted.sum()
        np.testing.assert_allclose(found, expected.total, atol=1e-4 * np.trace(expected.total))
    with pytest.raises(ShapeError, match="counted"):
        gather_totals(case.params, case.config, ids, mask, counted[:1], stack.prepared())


def test_generation_carries_lora_and_adapter_along(case_of):
    case, rng = case_of("mistral"), np.random.default_rng(3)
    tuning = {"lora": draw_lora(case.config, rng), "adapter": blend, "adapter_params": draw_matrices(case.config, rng)}
    ids = rng.integers(3, case.config.vocab_size, (1, 5))
    tokens = generate(case.params, case.config, ids, max_new_tokens=25, eos_token_ids=(), **tuning)
    again = np.asarray(scores(case.params, case.config, tokens, **tuning).argmax(-1))
    np.testing.assert_array_equal(tokens[:, 5:], again[:, 4:-1])
    plain = np.asarray(scores(case.params, case.config, tokens).argmax(-1))
    assert not np.array_equal(plain, again)


def test_remat_gives_the_same_gradients_in_less_memory(case_of):
    case, rng = case_of("llama"), np.random.default_rng(4)
    ids = rng.integers(3, case.config.vocab_size, (4, 100))
    factors = {path: pair[:2] for path, pair in draw_lora(case.config, rng).items()}
    results, memory = [], []
    for remat in (False, True):

        def loss_of(factors, remat=remat):
            tuned = {path: (*pair, 1.0) for path, pair in factors.items()}
            return loss(case.params, case.config, ids, ids, lora=tuned, remat=remat)

        compiled = jax.jit(jax.grad(loss_of), compiler_options=QUICK).lower(factors).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(factors))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(one).max()
        assert np.abs(one).max() > 0
    assert memory[1] < 0.7 * memory[0]


def test_scale_may_differ_from_layer_to_layer(case_of):
    case, rng = case_of("llama"), np.random.default_rng(5)
    path = "mlp.down_proj"
    down, up, _ = draw_lora(case.config, rng)[path]
    ids = rng.integers(3, case.config.vocab_size, (1, 8))
    by_layer = scores(case.params, case.config, ids, lora={path: (down, up, jnp.array([0.0, 2.0, 0.0]))})
    by_hand = scores(case.params, case.config, ids, lora={path: (down, up * np.array([0, 2, 0])[:, None, None], 1.0)})
    np.testing.assert_allclose(by_layer, by_hand, atol=TOLERANCE * np.abs(by_hand).max())


def test_wrong_factors_and_parameters_are_named(case_of):
    case, rng = case_of("llama"), np.random.default_rng(6)
    ids = np.array([[3, 4]])
    lora = draw_lora(case.config, rng)
    down, up, scale = lora["mlp.up_proj"]
    with pytest.raises(ConfigError, match=r"lora: got 'up_proj'.*mlp\.up_proj"):
        logits(case.params, case.config, ids, lora={"up_proj": (down, up, scale)})
    with pytest.raises(ShapeError, match=r"mlp\.up_proj: got A \(3, 64, 4\)"):
        logits(case.params, case.config, ids, lora={"mlp.up_proj": (np.swapaxes(down, 1, 2), up, scale)})
    with pytest.raises(ShapeError, match=r"adapter_params\['gate'\].*leading axis of 3 layers"):
        logits(case.params, case.config, ids, adapter=lambda p, x: x, adapter_params={"gate": np.zeros(2)})
