"""The models of the paper by a short name. Source: paper Table 2; licences: the model cards."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.finetune.models import architectures
from backends.finetune.models.architectures import Fields


@dataclass(frozen=True)
class ZooModel:
    """One model: ``fields`` of its config.json as published; ``reduced``: what differs in a small one of its kind."""

    name: str
    hub_id: str
    licence: str
    fields: Fields = field(repr=False)
    reduced: Fields = field(repr=False)


ZOO: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel(
            "tinyllama-1.1b",
            "TinyLlama/TinyLlama_v1.1",
            "Apache-2.0",
            architectures.TINYLLAMA,
            architectures.SMALL_LLAMA,
        ),
        ZooModel(
            "phi-4-mini",
            "microsoft/Phi-4-mini-instruct",
            "MIT",
            architectures.PHI_4_MINI,
            architectures.SMALL_PHI,
        ),
        ZooModel(
            "mistral-7b-v0.3",
            "mistralai/Mistral-7B-v0.3",
            "Apache-2.0",
            architectures.MISTRAL_V03,
            architectures.SMALL_MISTRAL,
        ),
        ZooModel(
            "saul-7b",
            "Equall/Saul-7B-Base",
            "MIT",
            architectures.MISTRAL_V01,
            architectures.SMALL_MISTRAL_V01,
        ),
        ZooModel(
            "gemma-2-9b",
            "google/gemma-2-9b",
            "Gemma Terms of Use, to be accepted on the model's page",
            architectures.GEMMA_2_9B,
            architectures.SMALL_GEMMA,
        ),
    )
}


def find_model(name: str) -> ZooModel | None:
    """The model of a short name or of a Hugging Face id, in upper or lower case; None for another name.

    >>> find_model("Mistral-7B-v0.3").hub_id
    'mistralai/Mistral-7B-v0.3'
    """
    wanted = name.lower()
    return next((model for model in ZOO.values() if wanted in (model.name, model.hub_id.lower())), None)
