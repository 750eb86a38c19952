"""Learning without forgetting: on the new task's inputs the model keeps the answers it gave before the task.

Source: Z. Li, D. Hoiem (2016), "Learning without Forgetting", ECCV (extended in IEEE TPAMI 40, 2018), equations 2-4:
the loss of the new task plus ``lambda_o = 1`` times the distillation loss at temperature ``T = 2``.

Left to us: a language model has one output for all tasks, so "old task" is the next-token distribution of the model as
it was when the phase began, at each answer token of the new task, and there is no new head to warm up first. Recorded
are logits, or the old model that computes them again: the same thing, as it is fixed.
"""

from __future__ import annotations

from torch import Tensor, nn

from reference.errors import ConfigError, ShapeError


def distillation_loss(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """``-sum_rows sum_i p'_i log p_i``, ``p = softmax(logits / T)``, ``p' = softmax(old_logits / T)``.

    ``softmax(l / T)`` is the published ``y_i^(1/T) / sum_j y_j^(1/T)`` of the probabilities ``y = softmax(l)``. There
    is no factor ``T^2``: Li and Hoiem have none, unlike G. Hinton, O. Vinyals, J. Dean (2015), "Distilling the
    Knowledge in a Neural Network". So the gradient is ``(p - p') / T`` in each row, and the loss is the entropy of
    ``p'`` at its least.

    Args:
        logits: of the model now, shape (tokens, vocabulary), any floating dtype. old_logits: of the old model for the
            same tokens, that shape; gets no gradient. temperature: T > 0.

    Returns:
        The sum over tokens in nats, 0-d, computed in float32 (float64 for float64 logits).

    Raises: ShapeError, ConfigError.
    """
    if logits.ndim != 2 or logits.shape != old_logits.shape:
        raise ShapeError(
            "old_logits",
            got=f"{tuple(old_logits.shape)} beside logits {tuple(logits.shape)}",
            allowed="two tensors of one shape (tokens, vocabulary)",
            remedy="take the logits of the same answer tokens from both models",
        )
    if not temperature > 0:
        raise ConfigError("temperature", got=temperature, allowed="a positive number", remedy="use 2, as published")
    new, old = (each if each.dtype.itemsize == 8 else each.float() for each in (logits, old_logits.detach()))
    return nn.functional.cross_entropy(new / temperature, (old / temperature).softmax(-1), reduction="sum")
