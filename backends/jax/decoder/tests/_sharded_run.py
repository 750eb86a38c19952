"""A small fine-tuning run on a mesh, or on one device: LoRA on every projection, CRMA behind every block, AdamW."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
import safetensors.numpy
from jax.sharding import Mesh

from backends.jax import CRMAAdapter
from backends.jax.decoder.config import DecoderConfig
from backends.jax.decoder.model import loss
from backends.jax.decoder.sharding import replicate, shard_batch, whole
from backends.jax.decoder.weights import load_decoder
from backends.state_file import decode_state, encode_state
from reference import AdapterConfig

EXAMPLES, TOKENS, RANK = 8, 7, 4
OPTIMIZER = optax.adamw(1e-2)


class Run:
    """One model on one mesh, or on one device where there is no mesh: a training step, compiled once."""

    def __init__(self, folder: Path, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.params, self.config = load_decoder(folder, device=mesh)
        trained = draw_trainables(self.config)
        self.trained, self.state = self.place((trained, OPTIMIZER.init(trained)))
        batch = draw_batch(self.config)
        self.batch = batch if mesh is None else shard_batch(mesh, batch)
        kept = None if mesh is None else whole(mesh)
        # Compiled ahead of time, it refuses trainables that come back from a step split otherwise than they went in.
        lowered = jax.jit(self._step, out_shardings=kept).lower(self.params, self.trained, self.state, self.batch)
        self.step = lowered.compile()

    def place(self, tree: Any) -> Any:
        return tree if self.mesh is None else replicate(self.mesh, tree)

    def _step(self, params: Any, trained: Any, state: Any, batch: Any) -> Any:
        def loss_of(trained: Any) -> jax.Array:
            return loss(params, self.config, *batch, **tuning(trained), remat=self.config.fused)

        value, gradients = jax.value_and_grad(loss_of)(trained)
        if self.mesh is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, whole(self.mesh))
        updates, state = OPTIMIZER.update(gradients, state, trained)
        return value, gradients, optax.apply_updates(trained, updates), state

    def train(self, steps: int) -> tuple[list[float], Any]:
        """Losses, and the gradients of the last of these steps."""
        losses: list[float] = []
        for _ in range(steps):
            value, gradients, self.trained, self.state = self.step(self.params, self.trained, self.state, self.batch)
            losses.append(float(value))
        return losses, gradients

    @property
    def program(self) -> str:
        """What XLA compiled for each device."""
        return self.step.as_text() or ""

    def save(self) -> tuple[bytes, bytes]:
        """The adapters in the state file of all backends; LoRA and the optimizer's state in another one."""
        crma = self.trained["crma"]
        sizes = AdapterConfig(self.config.hidden_size, *crma.basis.shape[1:3])
        mix_logits, gate_logits, bases = map(np.asarray, (crma.mix_logits, crma.gate_logit, crma.basis))
        adapters = encode_state(mix_logits, gate_logits, bases, sizes)
        rest = jax.tree_util.tree_flatten_with_path((self.trained["lora"], self.state))[0]
        return adapters, safetensors.numpy.save({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in rest})

    def load(self, adapters: bytes, rest: bytes) -> None:
        arrays, content = safetensors.numpy.load(rest), decode_state(adapters)
        mix_logits, gate_logits, bases = map(jnp.array, content[:3])
        crma = CRMAAdapter(mix_logits, gate_logits, bases)
        like = self.trained["lora"], self.state
        lora, state = jax.tree_util.tree_map_with_path(lambda path, _: arrays[jax.tree_util.keystr(path)], like)
        self.trained, self.state = self.place(({"crma": crma, "lora": lora}, state))


def draw_trainables(config: DecoderConfig) -> dict[str, Any]:
    """LoRA factors that are not zero, and adapters whose gate is open, so that all of them have gradients."""
    rng = np.random.default_rng(1)

    def factor(*shape: int, scale: float) -> Any:
        return (scale * rng.standard_normal((config.layers, *shape))).astype(np.float32)

    lora = {
        path: (factor(RANK, inputs, scale=inputs**-0.5), factor(outputs, RANK, scale=0.3))
        for path, (outputs, inputs) in config.projections.items()
    }
    crma = CRMAAdapter.init(AdapterConfig(config.hidden_size, 3, 2), layers=config.layers)
    return {"lora": lora, "crma": CRMAAdapter(crma.mix_logits, crma.gate_logit + 5, crma.basis)}


def tuning(trained: dict[str, Any]) -> dict[str, Any]:
    lora = {path: (*pair, 0.5) for path, pair in trained["lora"].items()}
    return {"lora": lora, "adapter": _apply, "adapter_params": trained["crma"].prepared()}


def _apply(layer: Any, x: jax.Array) -> jax.Array:
    y: jax.Array = layer(x)
    return y


def draw_batch(config: DecoderConfig) -> tuple[Any, Any, Any]:
    """Ids, labels and mask; rows differ in padding and in the number of labels, so that a mean of means is wrong."""
    rng = np.random.default_rng(2)
    ids = rng.integers(3, config.vocab_size, (EXAMPLES, TOKENS)).astype(np.int32)
    mask = (np.arange(TOKENS) >= rng.integers(0, TOKENS // 2, (EXAMPLES, 1))).astype(np.int32)
    counted = np.arange(TOKENS) >= rng.integers(TOKENS // 2, TOKENS, (EXAMPLES, 1))
    return ids, np.where(counted, ids, -100).astype(np.int32), mask
