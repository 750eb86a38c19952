"""What decides the results of a base model, as digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from backends.files import sha256_of
from backends.finetune.models.folder import read_json
from backends.finetune.models.marker import MARKER, is_random
from backends.finetune.models.weight_digest import cached_sha256
from backends.weight_files import SINGLE, find_tensors
from reference.errors import ModelError

#: what AutoTokenizer reads, of any kind of tokenizer, and the chat template
_TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.tiktoken", "tekken.json", "spiece.model", "sentencepiece*.model", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip
_OF_NO_EFFECT = ("_name_or_path", "transformers_version")  # where the folder lay, and what wrote it


def model_fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of what decides the results of a base model, part by part, wherever its folder lies.

    Of config.json all that describes the model; of the weights the whole content of each file that is loaded, or, for
    random weights that are drawn when the model is built, what they are drawn from; of the tokenizer every file that
    it is read from, its chat template included. What else lies in the folder does not count.

    Raises: ModelError, OSError.
    """
    config = {key: value for key, value in read_json(folder, "config.json").items() if key not in _OF_NO_EFFECT}
    drawn = is_random(folder) and not (folder / SINGLE).exists()
    shards = set() if drawn else {entry.file for entry in find_tensors(folder).values()}
    weights = {path.name: cached_sha256(path) for path in shards}
    if is_random(folder):
        weights[MARKER] = sha256_of(folder / MARKER)
    read = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    tokenizer = {path.relative_to(folder).as_posix(): cached_sha256(path) for path in read}
    parts = {"config": config, "weights": weights, "tokenizer": tokenizer}
    return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()}


def check_fingerprint(expected: Mapping[str, str], name: str, folder: Path) -> None:
    """Raise ModelError for another base model than the one called ``name`` that has this fingerprint."""
    found = model_fingerprint(folder)
    if differing := [part for part, digest in expected.items() if found.get(part) != digest]:
        raise ModelError(
            "model",
            got=f"{folder.name}, whose {' and '.join(differing)} are others than those of {name}",
            allowed=f"{name}, the base model that the adapters were trained on",
            remedy="name the folder of that model with --model",
        )
