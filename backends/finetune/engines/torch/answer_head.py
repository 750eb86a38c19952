"""The output head on the positions that predict answers alone: of a small model it is a large part."""

from typing import Any

from torch import Tensor

from reference.errors import ModelError


def answer_logits(model: Any, arguments: dict[str, Any], rows: Tensor, columns: Tensor) -> Tensor:
    """The logits of ``model(**arguments)`` at the positions (rows, columns): (positions, vocabulary).

    Args:
        model: a causal LM of transformers. rows, columns: (positions,), int64.

    The head's input is cut to these positions before the head is called, so what a family does to its logits afterwards
    (Gemma's soft-capping, Granite's scale) holds for them too. A model whose head is not found computes them all.

    Raises: ModelError where the head was called with other sizes. Source: ours.
    """
    shape, cut = arguments["input_ids"].shape, list[int]()

    def cut_input(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        if hidden.shape[:2] != shape:
            raise ModelError(
                f"the output head of {type(model).__name__}",
                got=f"an input of shape {tuple(hidden.shape)}",
                allowed=f"{tuple(shape)} positions, as the model itself was given",
                remedy="report this model: its forward pass leaves positions out",
            )
        cut.append(len(hidden))
        return hidden[rows, columns][None], *others

    head = model.get_output_embeddings()
    if head is None:
        return model(**arguments).logits[rows, columns]
    handle = head.register_forward_pre_hook(cut_input)
    try:
        logits: Tensor = model(**arguments).logits
    finally:
        handle.remove()
    return logits[0] if cut else logits[rows, columns]
