"""One optimizer step and one evaluation in JAX, as pure functions that compile once per shape of the batch.

Compiled functions live at module level, so that all conditions, phases and seeds of a run share them.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax import Array
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from backends.finetune.tasks.encoding import IGNORED, Batch
from backends.jax import CRMAAdapter, PreparedAdapter
from backends.jax.data_displacement import gather_totals
from backends.jax.decoder import DecoderConfig, logits, token_losses
from backends.jax.lora import decoder_lora

#: "lora": the factors of each projection; with a CRMA also "basis", "mixing" and "gate", stacked over layers
Trainables = dict[str, Any]
LENGTHS = 8  # at most as many lengths of batches are compiled
SHORTEST = 16


@dataclass(frozen=True)
class Compute:
    """What a compiled step depends on besides arrays.

    ``clips``: (group, norm) for each group of parameters. ``whole``: on a mesh, how a tree lies that every device has.
    ``remat``: whether the backward pass computes the inside of each layer again.
    """

    config: DecoderConfig
    iterations: int
    lora_scale: float
    matmul_dtype: str | None
    clips: tuple[tuple[str, float], ...]
    whole: NamedSharding | None = None
    remat: bool = False

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW without weight decay; per group the gradient is clipped by its own norm. Without the learning rate."""
        each = {name: optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam()) for name, clip in self.clips}
        return optax.multi_transform(each, lambda trainables: {name: name for name in trainables})


class Step(NamedTuple):
    """The trainables behind a step, the optimizer's state, the mean loss before it, gradient norms before clipping."""

    trainables: Trainables
    state: Any
    loss: Array
    norms: dict[str, Array]


def stack_of(trainables: Trainables, iterations: int) -> CRMAAdapter:
    """The shared CRMA among the trainables."""
    return CRMAAdapter(trainables["mixing"], trainables["gate"], trainables["basis"], iterations)


@partial(jax.jit, static_argnums=(0, 1))
def train_step(
    compute: Compute,
    distillation: tuple[float, float] | None,
    params: Any,
    trainables: Trainables,
    still: Trainables,
    teacher: Any,
    state: Any,
    batch: dict[str, Array],
    rates: dict[str, Array],
) -> Step:
    """One step on the mean loss per answer token; ``rates`` are the learning rates of the groups now, ``still`` the
    groups that take part and are not trained. ``distillation``: strength and temperature, where the step is held near
    the answers of the LoRA ``teacher`` (methods/lwf.py).
    """

    def mean_loss(trainables: Trainables) -> tuple[Array, Array]:
        answering = trainables | still
        scores = _logits(compute, params, answering, batch)
        losses, counted = token_losses(scores, batch["labels"])
        total, tokens = losses.sum(), counted.sum().astype(losses.dtype)
        held = jnp.zeros_like(total)
        if distillation is not None:
            strength, temperature = distillation
            old = _logits(compute, params, jax.lax.stop_gradient(answering) | {"lora": teacher}, batch)
            softened = distillation_losses(scores[:, :-1], old[:, :-1], temperature)
            held = strength * jnp.where(counted, softened, 0).sum()
        return (total + held) / tokens, total / tokens

    def whole(tree: Any) -> Any:
        # XLA would leave some leaves split over devices: more exchanges, and another program for the next step.
        return tree if compute.whole is None else jax.lax.with_sharding_constraint(tree, compute.whole)

    (_, loss), gradients = jax.value_and_grad(mean_loss, has_aux=True)(trainables)
    gradients = whole(gradients)
    norms = {name: optax.tree.norm(gradient) for name, gradient in gradients.items()}
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to its integer count of steps
        updates, state = compute.optimizer.update(gradients, state)
    scaled = {name: jax.tree.map(lambda u, rate=rates[name]: -rate * u, update) for name, update in updates.items()}
    return Step(whole(optax.apply_updates(trainables, scaled)), whole(state), loss, norms)


def distillation_losses(logits: Array, old_logits: Array, temperature: float) -> Array:
    """Of each row, as :func:`backends.finetune.methods.lwf.distillation_loss` sums them; in float32."""
    new, old = (each.astype(jnp.float32) / temperature for each in (logits, jax.lax.stop_gradient(old_logits)))
    return optax.softmax_cross_entropy(new, jax.nn.softmax(old))


class Scores(NamedTuple):
    """Per token of a batch but the first, (rows, tokens - 1): its loss in nats, whether it is the most probable one,
    and whether it belongs to an answer."""

    losses: Array
    right: Array
    counted: Array


@partial(jax.jit, static_argnums=0)
def answer_scores(compute: Compute, params: Any, trainables: Trainables, batch: dict[str, Array]) -> Scores:
    """Every answer token by itself."""
    scores = _logits(compute, params, trainables, batch)
    losses, counted = token_losses(scores, batch["labels"])
    return Scores(losses, scores[:, :-1].argmax(-1) == batch["labels"][:, 1:], counted)


@partial(jax.jit, static_argnums=0)
def stream_totals(compute: Compute, params: Any, trainables: Trainables, batch: dict[str, Array]) -> Array:
    """Of the moment of a batch, whose first tokens do not count: (layers, n r, n r). Clause: DATA-1."""
    return gather_totals(
        params,
        compute.config,
        batch["input_ids"],
        batch["attention_mask"],
        batch["attention_mask"].at[:, 0].set(0),
        stack_of(trainables, compute.iterations).prepared(),
        lora=decoder_lora(trainables["lora"], compute.lora_scale),
        matmul_dtype=compute.matmul_dtype,
    )


def _logits(compute: Compute, params: Any, trainables: Trainables, batch: dict[str, Array]) -> Array:
    prepared = stack_of(trainables, compute.iterations).prepared() if "basis" in trainables else None
    return logits(
        params,
        compute.config,
        batch["input_ids"],
        batch["attention_mask"],
        lora=decoder_lora(trainables["lora"], compute.lora_scale),
        adapter=None if prepared is None else PreparedAdapter.__call__,
        adapter_params=prepared,
        matmul_dtype=compute.matmul_dtype,
        remat=compute.remat,
    )


def padded(batch: Batch, rows: int, longest: int) -> dict[str, NDArray[np.int32]]:
    """The batch as int32, padded to one of few shapes, since each compiles anew.

    ``rows`` rows, and a multiple of an eighth of ``longest`` tokens. What is added counts in no loss; an added row has
    one token that is seen, so that attention has something to attend to.
    """
    multiple = max(SHORTEST, -(-longest // (LENGTHS * SHORTEST)) * SHORTEST)
    given_rows, given = batch.input_ids.shape
    length = min(-(-given // multiple) * multiple, max(longest, given))
    room = ((0, rows - given_rows), (0, length - given))
    mask = np.pad(batch.attention_mask, room)
    mask[given_rows:, 0] = 1
    arrays = {
        "input_ids": np.pad(batch.input_ids, room),
        "attention_mask": mask,
        "labels": np.pad(batch.labels, room, constant_values=IGNORED),
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}
