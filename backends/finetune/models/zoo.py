"""The models of the paper by a short name. Source: paper Table 2; licences: the model cards.

``zoo.json`` holds what they publish in their config.json, without token ids, since a model with random weights has a
tokenizer of its own; and what differs in a small model of the same family. That one keeps the family's features:
grouped heads in the same ratio, windows that short texts reach, part of each head turned (with every fourth of
LongRoPE's factors beyond 4,096 tokens, one per pair of entries that are turned), soft caps, tied embeddings. Its start
values of about 1 / sqrt(hidden) let it do more than copy with frozen random weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.files import read_json


@dataclass(frozen=True)
class ZooModel:
    """One model: ``fields`` of its config.json as published; ``reduced``: what differs in a small one of its kind."""

    name: str
    hub_id: str
    licence: str
    fields: dict[str, Any] = field(repr=False)
    reduced: dict[str, Any] = field(repr=False)


ZOO: dict[str, ZooModel] = {
    name: ZooModel(name, **content) for name, content in read_json(Path(__file__).with_suffix(".json")).items()
}


def find_model(name: str) -> ZooModel | None:
    """The model of a short name or of a Hugging Face id, in upper or lower case; None for another name.

    >>> find_model("Mistral-7B-v0.3").hub_id
    'mistralai/Mistral-7B-v0.3'
    """
    wanted = name.lower()
    return next((model for model in ZOO.values() if wanted in (model.name, model.hub_id.lower())), None)
