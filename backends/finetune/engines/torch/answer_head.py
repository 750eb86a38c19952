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

    Raises: ModelError where the head was called with other sizes, or the logits are not its. Source: ours.
    """
    shape, cut = arguments["input_ids"].shape, list[int]()

    def require(what: str, found: Tensor, positions: tuple[int, ...]) -> None:
        if tuple(found.shape[:2]) != positions:
            raise ModelError(
                f"the output head of {type(model).__name__}",
                got=f"{what} of shape {tuple(found.shape)}",
                allowed=f"{positions} positions, as it was given",
                remedy="report this model: its forward pass leaves positions out, or makes logits of something else",
            )

    def cut_input(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        require("an input", hidden, tuple(shape))
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
    if not cut:
        return logits[rows, columns]
    require("logits", logits, (1, len(rows)))
    return logits[0]
