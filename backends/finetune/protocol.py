"""Protocols: what a sequential fine-tuning run does, as a validated TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

import bench
from backends.finetune.conditions import PAPER, parse_condition
from reference.errors import ProtocolError

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1e6)]  # the optimizer computes in float32, which ends at 3e38


def _known(name: str) -> str:
    return parse_condition(name).name


ConditionName = Annotated[str, AfterValidator(_known)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSection(_Section):
    """LoRA, by PEFT. ``later_rate_factor`` scales the learning rate after the first task."""

    rank: Count = 8
    alpha: Count = 16
    target_modules: str | list[str] = "all-linear"
    learning_rate: Rate = 1e-3
    later_rate_factor: Factor = 1.0
    clip: Positive = 1.0


class GroupSection(_Section):
    """Learning rate and clipping norm of one group of CRMA parameters."""

    learning_rate: Rate
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
    later_rate_factor: Factor = 1.0
    log_every: Count = 5
    basis: GroupSection = GroupSection(learning_rate=1e-3)
    mixing: GroupSection = GroupSection(learning_rate=2e-2)
    gate: GroupSection = GroupSection(learning_rate=2e-2)


class ReplaySection(_Section):
    """Experience replay: examples of each finished task that are kept, and how many of all join each batch."""

    memory_per_task: Count = 32
    batch_size: Count = 4


class EwcSection(_Section):
    """EWC: the penalty's strength lambda, and the training examples of a task from which its Fisher is estimated."""

    strength: Factor = 1.0
    examples: Count = 32


class LwfSection(_Section):
    """Learning without Forgetting: the weight of the distillation loss, and its temperature."""

    strength: Factor = 1.0
    temperature: Positive = 2.0


class OrthogonalLoraSection(_Section):
    """O-LoRA: the weight of the orthogonality loss."""

    strength: Factor = 0.5


class FullSection(_Section):
    """Training of all parameters of the base model. ``later_rate_factor`` scales the learning rate after the first
    task."""

    learning_rate: Rate = 5e-5
    later_rate_factor: Factor = 1.0
    clip: Positive = 1.0


class Protocol(_Section):
    """One protocol. Counts are examples per task; ``epochs`` passes over each task's training examples. ``train`` and
    ``holdout`` are None where the tasks come from files, of which every line is used.

    ``precision`` is the base model's: "mixed" keeps weights and residual stream in float32 and multiplies matrices in
    bfloat16. CRMA and the parameters of LoRA are float32 in each. ``quantization`` "4bit" stores the base model's
    linear layers in NF4 (bitsandbytes). An optimizer step takes ``accumulation`` batches of ``batch_size``.
    ``packing`` puts several short examples into a row of ``max_tokens``. ``orderings`` "all" runs every order of the
    tasks, each in a run folder of its own. ``canaries`` per task are asked for by exact match, ``panel`` questions
    per task are answered with and without CRMA after the last phase, ``transfer`` measures each task before it is
    trained on, too, and on the bare base model.
    """

    name: str
    description: str
    source: str = ""
    model: str = "smollm2"
    models: list[str] = []
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"
    quantization: Literal["none", "4bit"] = "none"
    tasks: Annotated[list[str], Field(min_length=1)]
    orderings: Literal["given", "all"] = "given"
    train: Count | None
    holdout: Count | None
    canaries: Annotated[int, Field(ge=0)] = 0
    panel: Annotated[int, Field(ge=0)] = 0
    transfer: bool = False
    epochs: Count = 1
    batch_size: Count = 4
    accumulation: Count = 1
    packing: bool = False
    gradient_checkpointing: bool = False
    max_tokens: Annotated[int, Field(ge=8)] = 128
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    checkpoint_every: Count = 20
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0]
    conditions: Annotated[list[ConditionName], Field(min_length=1)] = list(PAPER)
    lora: LoraSection = LoraSection()
    crma: CrmaSection = CrmaSection()
    replay: ReplaySection = ReplaySection()
    ewc: EwcSection = EwcSection()
    lwf: LwfSection = LwfSection()
    o_lora: OrthogonalLoraSection = OrthogonalLoraSection()
    full: FullSection = FullSection()


def protocols_folder() -> Path:
    """Where the protocols that come with this package lie."""
    return Path(bench.__file__).parent / "protocols"


def load_protocol(name_or_path: str, settings: Sequence[str] = (), **overrides: Any) -> Protocol:
    """Read a protocol by name, or from a path that ends in ``.toml``; ``settings``, each FIELD=VALUE as in TOML, such
    as ``lora.rank=4``, and ``overrides`` replace what the file has; an override that is None is left out. ``tasks``
    among them are tasks from files, of which every line is used: ``train`` and ``holdout`` are None then.

    Raises: ProtocolError, naming the file, the field, what it got and what is allowed; also for a field that is set
    twice, since one of its values would be ignored.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if "tasks" in given:
        given |= {"train": None, "holdout": None}
    _check_settings(settings, given)
    known = {path.stem: path for path in sorted(protocols_folder().glob("*.toml"))}
    path = Path(name_or_path) if name_or_path.endswith(".toml") else known.get(name_or_path)
    if path is None or not path.is_file():
        raise ProtocolError(
            "protocol",
            got=repr(name_or_path) + (", where there is no such file" if path else ""),
            allowed=", ".join(known) + ", or the path of a .toml file",
            remedy="`crma protocols` lists the protocols with their descriptions",
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            str(path), got=str(error), allowed="a TOML file in UTF-8", remedy="correct the line that is named"
        ) from error
    for setting in settings:
        _set(content, setting)
    content |= given
    return _validated(content, path.name)


def _check_settings(settings: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise ProtocolError where a setting names a field that another option, or another setting, has set."""
    seen: set[str] = set()
    for setting in settings:
        field = setting.partition("=")[0].strip()
        if field in given or field in seen:
            option = "--task" if field in ("tasks", "train", "holdout") else f"--{field}"
            twice = "another --set" if field in seen else f"{option}, which sets this field"
            raise ProtocolError(
                f"--set {field}",
                got=f"{setting!r} beside {twice}",
                allowed="each field once; of tasks from files every line is used",
                remedy="leave one of the two out",
            )
        seen.add(field)


def _set(content: dict[str, Any], setting: str) -> None:
    """Write one FIELD=VALUE into ``content``."""
    field, equals, text = (part.strip() for part in setting.partition("="))
    *sections, name = field.split(".")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word without its quotation marks, which a shell takes away
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            equals = ""
            break
        content = inner
    if not equals or not name:
        raise ProtocolError(
            "--set", got=repr(setting), allowed="FIELD=VALUE", remedy="write, for instance, --set lora.rank=4"
        )
    content[name] = value


def _validated(content: dict[str, Any], source: str) -> Protocol:
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        allowed = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            allowed = f"the fields {', '.join(_fields(first['loc'][:-1]))}"
        raise ProtocolError(
            f"{source}: {field}",
            got=repr(first.get("input")),
            allowed=allowed,
            remedy=f"correct it; {len(error.errors())} field(s) are wrong in all",
        ) from error


def _fields(section: Sequence[int | str]) -> list[str]:
    """The names of the fields of a section."""
    model: type[BaseModel] = Protocol
    for name in section:
        model = model.model_fields[str(name)].annotation  # type: ignore[assignment]
    return list(model.model_fields)
