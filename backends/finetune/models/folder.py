"""A base model's folder: whether it is whole, its configuration and its tokenizer, as transformers reads them."""

from pathlib import Path
from typing import Any

from backends import files
from backends.files import printable
from backends.finetune.models.limits import limits_of
from backends.finetune.models.load_errors import load_errors
from backends.finetune.models.marker import MARKER, is_random
from backends.finetune.models.zoo import ZOO
from backends.weight_files import SINGLE, find_tensors
from reference.errors import MissingPackageError, ModelError

ALLOWED = (
    '"smollm2" or "gemma3-270m", or a folder with config.json, *.safetensors and a tokenizer, as save_pretrained writes'
    " it; or one of " + ", ".join(ZOO)
)
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
MOST_LAYERS = 1000  # of a model without files of weights, by which the number could be judged
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_decoder_layers")
_SIDE_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_config(folder: Path) -> Any:
    """The configuration of a model folder as transformers reads it, once the folder has passed
    :func:`check_model_folder`; code that a folder brings with it is never run.

    Raises: ModelError.
    """
    from transformers import AutoConfig

    check_model_folder(folder, tokenizer=False)
    with load_errors(folder):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises: ModelError, also for one with more tokens than the model has."""
    from transformers import AutoTokenizer

    config = load_config(folder)
    with load_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        limits_of(config).check_tokenizer(folder, tokenizer)
    return tokenizer


def check_model_folder(folder: Path, *, tokenizer: bool = True) -> None:
    """Raise ModelError unless ``folder`` holds a configuration, whole weights and, if asked, a tokenizer; no adapter.

    Only headers are read, so this is quick, and absurd sizes cost nothing. A folder that is marked as having random
    weights need not hold any: they are drawn when the model is built.
    """
    if not folder.is_dir():
        raise _incomplete(folder, "a file" if folder.exists() else "no folder")
    for file in sorted(folder.iterdir()):  # libraries would wait for a pipe for ever, and read a device without end
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise _incomplete(folder, f"{file.name}, which is no file but a pipe or a device")
    config = read_json(folder, "config.json")
    for name in _SIDE_FILES:  # libraries pass over some of them where they are damaged
        if (folder / name).exists() and not isinstance(read_json(folder, name), dict):
            raise _incomplete(folder, f"a {name} that holds no JSON object")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _incomplete(folder, "a config.json without model_type")
    for name in ADAPTERS:
        if (folder / name).exists():
            raise ModelError(
                f"model folder {folder}",
                got=f"{name}, which would become a part of the base model",
                allowed="a base model by itself",
                remedy="move the adapter into a folder of its own; or merge it into the weights and save the model",
            )
    if is_random(folder):
        _check_marker(folder)
    most_layers = MOST_LAYERS
    if not is_random(folder) or (folder / SINGLE).exists():
        most_layers = len(find_tensors(folder))
    _check_layers(folder, config, most_layers)
    if tokenizer and not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _incomplete(folder, f"a folder without a tokenizer ({', '.join(_TOKENIZERS)})")


def _check_marker(folder: Path) -> None:
    marker = read_json(folder, MARKER)
    if not isinstance(marker, dict) or type(marker.get("seed")) is not int or not 0 <= marker["seed"] < 2**63:
        raise _incomplete(folder, f"a {MARKER} without a seed")


def _check_layers(folder: Path, fields: dict[str, Any], most: int) -> None:
    """Building a model, even without memory for it, takes as long as it has layers: ten million never end."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_layers(folder, value, most)
        elif name in _LAYERS and value is not None and not (type(value) is int and 0 < value <= most):
            raise ModelError(
                f"model folder {folder}: config.json: {name}",
                got=printable(repr(value))[:100],
                allowed=f"an integer from 1 to {most}, as many tensors as the folder holds",
                remedy="check that config.json and the weights belong to the same model; copy or download it again",
            )


def read_json(folder: Path, name: str) -> Any:
    """The content of a JSON file of a model folder. Raises: ModelError."""
    try:
        return files.read_json(folder / name)
    except FileNotFoundError:
        raise _incomplete(folder, f"a folder without {name}") from None
    except (ValueError, OSError) as error:
        raise _incomplete(folder, f"a {name} that cannot be read ({printable(error)[:200]})") from error


def _incomplete(folder: Path, got: str) -> ModelError:
    return ModelError(
        f"model folder {folder}",
        got=got,
        allowed=ALLOWED,
        remedy="copy or download the whole model again; weights of another format go through save_pretrained first",
    )


def missing_extra(error: ImportError) -> MissingPackageError:
    """What to say where one of the packages of the extra ``finetune`` is not installed."""
    return MissingPackageError(
        "base model",
        got=f"no package named {error.name}" if error.name else str(error).split("\n")[0],
        allowed="an installation with the extra 'finetune'",
        remedy="pip install 'crma[finetune]'",
    )
