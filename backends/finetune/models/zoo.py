"""The models of the paper by a short name: ``zoo.json``.

Of each, ``fields`` are those of the published config.json, but for token ids, since a model with random weights has a
tokenizer of its own. ``reduced`` is what differs in a small model of the same family with its features: grouped heads
in the same ratio, windows that short texts reach, part of each head turned, soft caps, tied embeddings. Its start
values are about 1 / sqrt(hidden), so that frozen random weights do more than copy. The ``long_factor`` of Phi-4-mini
belongs to positions beyond 4,096.

Source: paper Table 2; the published config.json files; licences: the model cards.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ZooModel:
    """One model: ``fields`` of its config.json as published; ``reduced``: what differs in a small one of its kind."""

    name: str
    hub_id: str
    licence: str
    fields: dict[str, Any] = field(repr=False)
    reduced: dict[str, Any] = field(repr=False)


ZOO = {
    model["name"]: ZooModel(**model)
    for model in json.loads(Path(__file__).with_name("zoo.json").read_text(encoding="utf-8"))
}


def find_model(name: str) -> ZooModel | None:
    """The model of a short name or of a Hugging Face id, in upper or lower case; None for another name.

    >>> find_model("Mistral-7B-v0.3").hub_id
    'mistralai/Mistral-7B-v0.3'
    """
    wanted = name.lower()
    return next((model for model in ZOO.values() if wanted in (model.name, model.hub_id.lower())), None)
