"""Sequence packing: several examples in one row, each blind to the others, so that little is padded.

Source: M. Krell, M. Kosec, S. Perez, A. Fitzgibbon (2021), "Efficient Sequence Packing without Cross-contamination",
arXiv:2107.02027: positions that restart in each example, and a mask that is block-diagonal. Ours: the packing itself,
first-fit decreasing (D. Johnson, 1973: at most 11/9 of the fewest rows, and 4 more), and the form of the mask.

**The mask is made by transformers**, from ``position_ids`` alone: where neither an attention mask nor a cache is given,
its mask functions start a new block wherever the positions do not go up by one, for each kind of layer of the model
(full, sliding window, Gemma-2's two in turn). So :func:`model_arguments` passes ``attention_mask=None`` and
``use_cache=False``; **with either of them changed, the examples of a row would see each other, without any error.** A
4-d mask of our own would have to be float for plain attention and boolean for the fused one, and one per kind of layer.
With flash attention a batch may have one row only. :func:`check_packing` asks the model itself.

Padding has position 0 throughout: each padding token is a block of its own, so that no row of the mask is empty, and
the greatest position is that of a real token (Phi-3's rotary embedding depends on it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.finetune.tasks.encoding import IGNORED, Batch, EncodedExample
from reference.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch


def pack(examples: Sequence[EncodedExample], max_tokens: int) -> list[list[int]]:
    """Indices of the examples of each row of at most ``max_tokens`` tokens: longest first, each into the first row with
    room. A function of the lengths alone; every example is in one row.

    Raises: ConfigError if an example is longer than ``max_tokens``.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(examples)), key=lambda index: -len(examples[index].ids)):
        length = len(examples[index].ids)
        if length > max_tokens:
            raise ConfigError(
                "max_tokens of a packed row",
                got=f"{max_tokens}, and example {index + 1} has {length} tokens",
                allowed="at least the longest example",
                remedy="encode the examples with the same max_tokens",
            )
        row = next((row for row, free in enumerate(room) if length <= free), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_tokens)
        rows[row].append(index)
        room[row] -= length
    return rows


def collate_packed(rows: Sequence[Sequence[EncodedExample]], pad_id: int) -> Batch:
    """Put the examples of each row one behind the other, and pad on the right to the longest row.

    ``labels`` hold IGNORED on the first token of each example too, which nothing in its own example predicts.
    """
    lengths = [sum(len(example.ids) for example in row) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    position_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        start = 0
        for example in row:
            end = start + len(example.ids)
            input_ids[index, start:end] = example.ids
            position_ids[index, start:end] = np.arange(len(example.ids))
            labels[index, start:end] = [IGNORED, *example.labels[1:]]
            start = end
        mask[index, :start] = 1
    return Batch(input_ids, mask, labels, position_ids)


def model_arguments(batch: Batch, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The arguments of a transformers causal LM; for a packed batch, those that keep the examples of a row apart."""
    import torch

    packed = batch.position_ids is not None
    given = {"position_ids": batch.position_ids} if packed else {"attention_mask": batch.attention_mask}
    arrays = {"input_ids": batch.input_ids, **given}
    moved = {
        name: torch.from_numpy(array).to(device, non_blocking=True)
        for name, array in arrays.items()
        if array is not None
    }
    return moved | ({"attention_mask": None} if packed else {}) | {"use_cache": False}


def check_packing(model: Any) -> None:
    """Run ``model`` (in evaluation mode) on two short examples, alone, packed, and run together as one text; the packed
    logits must be those alone, to a tenth of what running together changes: far above any rounding, far below any leak.

    Raises: ModelError if it lets the examples of a row see each other, as Falcon does in transformers 5.17 and 5.23.
    """
    import torch

    embedding = model.get_input_embeddings()
    ids = tuple((torch.arange(3, 17) * 7919 % embedding.num_embeddings).tolist())
    first, second, together = EncodedExample(ids[:8], 1), EncodedExample(ids[8:], 1), EncodedExample(ids, 1)

    def logits(*rows: list[EncodedExample]) -> torch.Tensor:
        arguments = model_arguments(collate_packed(rows, 0), embedding.weight.device)
        last: torch.Tensor = model(**arguments).logits[0, -len(second.ids) :].float()
        return last

    with torch.no_grad():
        alone, packed, leaking = logits([second]), logits([first, second], [second, first]), logits([together])
    if not (packed - alone).abs().max() <= 0.1 * (leaking - alone).abs().max():
        raise ModelError(
            "sequence packing",
            got=f"a {type(model).__name__} in which the examples of a row see each other",
            allowed="a model that makes its masks from position_ids (Llama, Mistral, Gemma, Phi-3, Qwen, ...)",
            remedy="train without packing",
        )
