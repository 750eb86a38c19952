"""Protocols: what a sequential fine-tuning run does, as a validated TOML file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from math import factorial
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model, model_validator

from backends.files import TEXT_LIMIT, parse_toml
from backends.finetune.methods.conditions import ADDED_LATER, KNOWN, PAPER, SECTIONS, parse_condition
from backends.finetune.methods.method import Condition
from backends.finetune.methods.section import Count, Factor, Positive, Rate, Rows, Section
from backends.finetune.protocols.text_file import read_text
from reference.errors import ProtocolError

Width = Annotated[int, Field(ge=1, le=2**14)]  # the hidden size of the widest open models, which a rank never exceeds
CountOrNone = Annotated[int, Field(ge=0, le=10**7)]
Steps = Annotated[int, Field(ge=0, le=10**9)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text without the character NUL, which no path and no name can have")
    return text


def _file_name(name: str) -> str:
    """The run folder is runs/NAME: a protocol from elsewhere does not choose another place."""
    if set(name) & set("/\\") or name.strip() in ("", ".", ".."):
        raise ValueError("a name without / and \\, since runs/NAME is the run folder where --out names no other")
    return name


def _modules(modules: str | list[str]) -> str | list[str]:
    if not modules or not all(modules):
        raise ValueError('"all-linear", a regular expression, or at least one name, none of them empty')
    try:
        re.compile(modules if isinstance(modules, str) else "")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f'"all-linear", a list of names, or a regular expression, which has an error: {error}'
        ) from None
    return modules


def template_of(template: str) -> str:
    """The template itself in place of its file: what a run reads does not change with a file elsewhere."""
    if template in ("auto", "none") or "{%" in template or "{{" in template:
        return template
    text = read_text(template, ProtocolError, limit=TEXT_LIMIT)
    if "{%" not in text and "{{" not in text:
        raise ProtocolError(
            template, got="a text without {% and {{", allowed="a chat template in Jinja", remedy="name its file"
        )
    return text


MOST_ORDERED = 7
ConditionName = Annotated[str, AfterValidator(lambda name: parse_condition(name).name)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_without_nul)]
Modules = Annotated[str | list[str], AfterValidator(_modules)]


class LoraSection(Section):
    """LoRA, by PEFT. ``later_rate_factor`` scales the learning rate after the first task."""

    rank: Width = 8
    alpha: Count = 16
    target_modules: Modules = "all-linear"
    learning_rate: Rate = 1e-3
    later_rate_factor: Factor = 1.0
    clip: Positive = 1.0


class GroupSection(Section):
    """Learning rate and clipping norm of one group of CRMA parameters."""

    learning_rate: Rate
    clip: Positive = 1.0


class CrmaSection(Section):
    """The shared CRMA. ``displacement_budget`` is delta: no layer moves further than that from its state after the
    first task (``limit_displacement``); absent means no limit. ``data_budget`` is epsilon, for what the tokens of
    earlier tasks see of such a move, with a basis that stays after the first task (``limit_data_displacement``); it
    takes the other budget's place, in every condition that has none of its own. ``later_rate_factor`` scales the three
    learning rates after the first task."""

    streams: Width = 4
    rank: Width = 4
    iterations: Annotated[int, Field(ge=1, le=10**5)] = 20
    basis_start: Literal["random", "principal"] = "random"
    skip_directions: Annotated[int, Field(ge=0, le=2**14)] = 0
    gate_logit: Annotated[float, Field(ge=-1e30, le=1e30)] = -5.0
    displacement_budget: Positive | None = None
    data_budget: Positive | None = None
    later_rate_factor: Factor = 1.0
    log_every: Count = 5
    basis: GroupSection = GroupSection(learning_rate=1e-3)
    mixing: GroupSection = GroupSection(learning_rate=2e-2)
    gate: GroupSection = GroupSection(learning_rate=2e-2)

    @model_validator(mode="after")
    def _one_budget(self) -> CrmaSection:
        if self.displacement_budget is not None and self.data_budget is not None:
            raise ValueError("displacement_budget or data_budget, one of the two, since one takes the other's place")
        return self


_OF_METHODS: Any = create_model(
    "_OfMethods",
    __base__=Section,
    **{
        str(KNOWN[name].settings_section): (kind | None, None)
        if KNOWN[name].settings_section in ADDED_LATER
        else (kind, kind())
        for name, kind in SECTIONS.items()
    },  # type: ignore[call-overload]
)


class Protocol(_OF_METHODS):
    """One protocol. Counts are examples per task; ``epochs`` passes over each task's training examples. ``train`` and
    ``holdout`` are None where the tasks come from files, of which every line is used.

    ``precision`` is the base model's: "mixed" keeps weights and residual stream in float32 and multiplies matrices in
    bfloat16. CRMA and the parameters of LoRA are float32 in each. ``quantization`` "4bit" stores the base model's
    linear layers in NF4 (bitsandbytes). An optimizer step takes ``accumulation`` batches of ``batch_size``.
    ``template`` is the chat template that prompts and answers are put in: "auto", the tokenizer's own, "none", or
    that of a file. ``packing`` puts several short examples into a row of ``max_tokens``. ``orderings`` "all" runs
    every order of the tasks, each in a run folder of its own, and "drawn" one for each seed, which draws it.
    ``decision`` texts per task, beside those held out, decide which version of a shared state it answers with.
    ``canaries`` per task are asked for by exact match, ``panel`` questions per task are answered with and without
    CRMA after the last phase, ``transfer`` measures each task before it is trained on, too, and on the bare base
    model. Each method that has settings adds a section of its own.
    """

    name: Annotated[Name, AfterValidator(_file_name)]
    description: str
    source: str = ""
    model: Annotated[str, AfterValidator(_without_nul)] = "smollm2"
    models: list[str] = Field(default_factory=list)
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"
    quantization: Literal["none", "4bit"] = "none"
    tasks: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    orderings: Literal["given", "all", "drawn"] = "given"
    train: Count | None
    holdout: Count | None
    decision: CountOrNone = 0
    canaries: CountOrNone = 0
    panel: CountOrNone = 0
    transfer: bool = False
    epochs: Annotated[int, Field(ge=1, le=10**5)] = 1
    batch_size: Rows = 4
    accumulation: Rows = 1
    packing: bool = False
    gradient_checkpointing: bool = False
    template: Annotated[str, AfterValidator(_without_nul), AfterValidator(template_of)] = "none"
    max_tokens: Annotated[int, Field(ge=8, le=2**24)] = 128  # the longest context of an open model: 10 million
    warmup_steps: Steps = 2
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] = 20
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=10_000)] = Field(
        default_factory=lambda: [0]
    )
    conditions: Annotated[list[ConditionName], Field(min_length=1, max_length=1000)] = Field(
        default_factory=lambda: list(PAPER)
    )
    lora: LoraSection = LoraSection()
    crma: CrmaSection = CrmaSection()

    @model_validator(mode="after")
    def _few_orders(self) -> Protocol:
        if self.orderings == "all" and len(self.tasks) > MOST_ORDERED:
            raise ValueError(
                f'orderings "all" with at most {MOST_ORDERED} tasks, which have {factorial(MOST_ORDERED):,} orders; '
                f"{len(self.tasks)} tasks would need a run folder for each of {len(self.tasks)}! orders"
            )
        return self

    def condition(self, name: str) -> Condition:
        """The condition of a name, with this protocol's data budget where it has no budget of its own."""
        return parse_condition(name).with_data_budget(self.crma.data_budget)


def protocols_folder() -> Path:
    """Where the protocols that come with this package lie."""
    return Path(__file__).parent


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
    if path is None or not os.path.lexists(path):
        raise ProtocolError(
            "protocol",
            got=_SHORT.repr(name_or_path) + (", where there is no such file" if path else ""),
            allowed=", ".join(known) + ", or the path of a .toml file",
            remedy="`crma protocols` lists the protocols with their descriptions",
        )
    try:
        content = parse_toml(read_text(path, ProtocolError, limit=TEXT_LIMIT))
    except ProtocolError:  # a ValueError, too
        raise
    except ValueError as error:
        raise ProtocolError(
            str(path), got=str(error), allowed="a TOML file in UTF-8", remedy="correct the line that is named"
        ) from error
    for setting in settings:
        _set(content, setting)
    _leave_one_budget(content, settings)
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
                got=f"{_SHORT.repr(setting)} beside {twice}",
                allowed="each field once; of tasks from files every line is used",
                remedy="leave one of the two out",
            )
        seen.add(field)


def _set(content: dict[str, Any], setting: str) -> None:
    """Write one FIELD=VALUE into ``content``."""
    field, equals, text = (part.strip() for part in setting.partition("="))
    *sections, name = field.split(".")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text  # a word without its quotation marks, which a shell takes away
    if len(sections) > 2:
        equals = ""  # no section is deeper
    for section in sections[:2]:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            equals = ""
            break
        content = inner
    if not equals or not name:
        raise ProtocolError(
            "--set", got=_SHORT.repr(setting), allowed="FIELD=VALUE", remedy="write, for instance, --set lora.rank=4"
        )
    content[name] = value


def _leave_one_budget(content: dict[str, Any], settings: Sequence[str]) -> None:
    """A budget that is set takes the place of the file's other one."""
    given = {setting.partition("=")[0].strip() for setting in settings}
    for name, other in (("displacement_budget", "data_budget"), ("data_budget", "displacement_budget")):
        if f"crma.{name}" in given and f"crma.{other}" not in given:
            content["crma"].pop(other, None)


def _validated(content: dict[str, Any], source: str) -> Protocol:
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])[:200] or "the whole"
        allowed = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            allowed = f"the fields {', '.join(_fields(first['loc'][:-1]))}"
        raise ProtocolError(
            f"{source}: {field}",
            got=_SHORT.repr(first.get("input")),
            allowed=allowed,
            remedy=f"correct it; {len(error.errors())} field(s) are wrong in all",
        ) from error


#: ``repr`` of what a protocol holds, of bounded depth and length
_SHORT = Repr()
vars(_SHORT).update(maxlevel=3, maxlist=8, maxdict=8, maxstring=200, maxlong=60, maxother=200)


def _fields(section: Sequence[int | str]) -> list[str]:
    """The names of the fields of a section."""
    model: type[BaseModel] = Protocol
    for name in section:
        annotation = model.model_fields[str(name)].annotation
        model = next(part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields"))
    return list(model.model_fields)
