"""Protocols: what a sequential fine-tuning run does, as a validated TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import bench
from reference.errors import ProtocolError

Condition = Literal["naive", "frozen", "modular"]
CONDITIONS: tuple[Condition, ...] = ("naive", "frozen", "modular")

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSection(_Section):
    """Per-task LoRA, by PEFT."""

    rank: Count = 8
    alpha: Count = 16
    target_modules: str | list[str] = "all-linear"
    learning_rate: Positive = 1e-3
    clip: Positive = 1.0


class GroupSection(_Section):
    """Learning rate and clipping norm of one group of CRMA parameters."""

    learning_rate: Positive
    clip: Positive = 1.0


class CrmaSection(_Section):
    """The shared CRMA. ``displacement_budget`` is delta: no layer moves further than that from its state after the
    first task (``limit_displacement``); absent means no limit. ``later_rate_factor`` scales the three learning rates
    after the first task."""

    streams: Count = 4
    rank: Count = 4
    iterations: Count = 20
    basis_start: Literal["random", "principal"] = "random"
    skip_directions: Annotated[int, Field(ge=0)] = 0
    gate_logit: float = -5.0
    displacement_budget: Positive | None = None
    later_rate_factor: Annotated[float, Field(ge=0)] = 1.0
    log_every: Count = 5
    basis: GroupSection = GroupSection(learning_rate=1e-3)
    mixing: GroupSection = GroupSection(learning_rate=2e-2)
    gate: GroupSection = GroupSection(learning_rate=2e-2)


class Protocol(_Section):
    """One protocol. Counts are examples per task; ``epochs`` passes over each task's training examples.

    ``precision`` is the base model's: "mixed" keeps weights and residual stream in float32 and multiplies matrices in
    bfloat16. CRMA and the parameters of LoRA are float32 in each.
    """

    name: str
    description: str
    model: str = "smollm2"
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"
    tasks: Annotated[list[str], Field(min_length=1)]
    train: Count
    holdout: Count
    epochs: Count = 1
    batch_size: Count = 4
    max_tokens: Annotated[int, Field(ge=8)] = 128
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    checkpoint_every: Count = 20
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0]
    conditions: Annotated[list[Condition], Field(min_length=1)] = list(CONDITIONS)
    lora: LoraSection = LoraSection()
    crma: CrmaSection = CrmaSection()


def protocols_folder() -> Path:
    """Where the protocols that come with this package lie."""
    return Path(bench.__file__).parent / "protocols"


def load_protocol(name_or_path: str, **overrides: Any) -> Protocol:
    """Read a protocol by name, or from a path that ends in ``.toml``; an override that is None is left out.

    Raises: ProtocolError, naming the file, the field, what it got and what is allowed.
    """
    known = {path.stem: path for path in sorted(protocols_folder().glob("*.toml"))}
    path = Path(name_or_path) if name_or_path.endswith(".toml") else known.get(name_or_path)
    if path is None or not path.is_file():
        raise ProtocolError(
            "protocol",
            got=repr(name_or_path),
            allowed=", ".join(known) + ", or the path of a .toml file",
            remedy="`crma protocols` lists the protocols with their descriptions",
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            str(path), got=str(error), allowed="a TOML file in UTF-8", remedy="correct the line that is named"
        ) from error
    content |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(
            f"{path.name}: {field}",
            got=repr(first.get("input")),
            allowed=first["msg"],
            remedy=f"correct it; {len(error.errors())} field(s) are wrong in all",
        ) from error
