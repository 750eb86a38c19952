"""Take fields out of a config.json, each with its type checked and its name in the error."""

import math
from pathlib import Path
from typing import Any

from backends.weight_files import read_object
from reference.errors import ModelError

REMEDY = "take another model, or fine-tune this one with the PyTorch backend"
REPAIR = "copy or download the whole model again, or repair the field"
_MISSING = object()


class Fields:
    """The entries of one JSON object; ``where`` names it in errors, e.g. "folder/config.json"."""

    def __init__(self, where: str, entries: dict[str, Any]) -> None:
        self.where, self.entries = where, entries

    def get(self, name: str, default: Any = None) -> Any:
        """The entry, or the default where it is absent or null."""
        value = self.entries.get(name)
        return default if value is None else value

    def integer(self, name: str, default: Any = _MISSING, least: int = 1) -> int:
        value = self._required(name, default)
        if type(value) is not int or value < least:
            raise self.refusal(name, value, f"an integer of at least {least}", REPAIR)
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number above zero."""
        value = self._required(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.refusal(name, value, "a finite number above zero", REPAIR)
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """As ``number``, or None where the file says null; the default only where the field is absent."""
        if name not in self.entries:
            return default
        return None if self.entries[name] is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.refusal(name, value, "true or false", REPAIR)
        return value

    def choice(self, name: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        value = self.get(name, default)
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise self.refusal(name, value, "one of " + ", ".join(map(str, allowed)))
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of ``length`` finite numbers above zero."""
        value = self._required(name, _MISSING)
        whole = isinstance(value, list) and len(value) == length
        if not whole or not all(type(v) in (int, float) and math.isfinite(v) and v > 0 for v in value):
            raise self.refusal(name, value, f"a list of {length} finite numbers above zero", REPAIR)
        return tuple(map(float, value))

    def refusal(self, name: str, got: Any, allowed: str, remedy: str = REMEDY) -> ModelError:
        shown = repr(got) if len(repr(got)) <= 120 else repr(got)[:120] + " ..."
        return ModelError(f"{self.where}: {name}", got=shown, allowed=allowed, remedy=remedy)

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is _MISSING:
            raise self.refusal(name, "nothing", "a value; it is required", REPAIR)
        return value


def read_fields(path: Path) -> Fields:
    """The JSON object in a file. Raises: ModelError for a file that is missing or holds anything else."""
    return Fields(str(path), read_object(path))
