"""The settings of a task: what the folder fixes, what follows the amount of data, what the user sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backends.finetune.protocols.protocol import Protocol, load_protocol
from reference.errors import ProtocolError

#: what all tasks of a folder share, since their LoRAs take turns in one model and one CRMA serves them all
FIXED = (
    "precision", "quantization", "template", "lora.rank", "lora.alpha", "lora.target_modules", "crma.streams",
    "crma.rank", "crma.iterations", "crma.basis_start", "crma.skip_directions",
)  # fmt: skip
#: what of a protocol one task has; the other fields speak of a run of several tasks, or have options of their own
SETTABLE = (
    "precision", "quantization", "epochs", "batch_size", "accumulation", "packing", "gradient_checkpointing",
    "template", "max_tokens", "warmup_steps", "checkpoint_every", "lora", "crma", "distilled",
)  # fmt: skip
LONGEST = 1024  # tokens, of an example that is not cut where no setting says otherwise
#: of a distilled start: of what was tried in `forgetting` at seed 0 the best (bench/README.md)
DISTILLED_STRENGTH = 0.3


class Amount(NamedTuple):
    """Up to ``texts`` examples to train on: passes over them, and LoRA's learning rate."""

    texts: float
    epochs: int
    rate: float


#: Measured by `python -m bench.learn_defaults` at 16 and 64 texts (figures in bench/README.md): two passes at this
#: rate gave the lowest held-out loss at both. That more than 128 texts get one pass is not measured.
AMOUNTS = (Amount(128, 2, 2e-3), Amount(math.inf, 1, 2e-3))


def task_protocol(
    name: str,
    texts: int,
    lengths: Sequence[int],
    settings: Sequence[str],
    folder: Protocol | None,
    positions: int = LONGEST,
    *,
    distilled: bool = False,
) -> Protocol:
    """The protocol of one task.

    Args:
        texts: how many are trained on. lengths: of all its examples, in tokens; none are known before the model is.
        settings: FIELD=VALUE as the user gave them. folder: the settings that the folder's tasks share.
        positions: the most tokens that the model reads. distilled: whether its start is.

    Raises: ProtocolError, also for a setting that would part the task from the others of the folder.
    """
    given = {setting.partition("=")[0].strip() for setting in settings}
    amount = next(amount for amount in AMOUNTS if texts <= amount.texts)
    chosen = {"epochs": amount.epochs, "lora.learning_rate": amount.rate}
    if distilled and not any(field.startswith("distilled") for field in given):
        chosen["distilled.strength"] = DISTILLED_STRENGTH
    if lengths:
        longest = sorted(lengths)[math.ceil(0.99 * len(lengths)) - 1]
        chosen["max_tokens"] = min(max(64, -(-longest // 32) * 32), LONGEST, positions)
    own = [f"{field}={value}" for field, value in chosen.items() if field not in given]
    protocol = load_protocol(str(Path(__file__).with_name("defaults.toml")), [*own, *settings])
    if unknown := sorted(field for field in given if field.partition(".")[0] not in SETTABLE):
        raise ProtocolError(
            f"--set {unknown[0]}",
            got="a field that does nothing where one task is taught",
            allowed=", ".join(SETTABLE),
            remedy="leave it out; the task's name, its holdout texts and the model have options of their own",
        )
    protocol = protocol.model_copy(update={"tasks": [name], "train": None, "holdout": None, "decision": 1})
    return protocol if folder is None else _fixed(protocol, folder, given)


def _fixed(protocol: Protocol, folder: Protocol, given: set[str]) -> Protocol:
    budgets = {name: getattr(folder.crma, name) for name in ("displacement_budget", "data_budget")}
    if not (named := sorted(given & {f"crma.{name}" for name in budgets})):
        protocol = protocol.model_copy(update={"crma": protocol.crma.model_copy(update=budgets)})
    elif (protocol.crma.data_budget is None) != (folder.crma.data_budget is None):
        raise ProtocolError(
            named[0],
            got="a budget of another kind than the folder's",
            allowed=("no " if folder.crma.data_budget is None else "")
            + "crma.data_budget: every task of a folder is taught with the same kind of budget, of any size",
            remedy="leave the setting out, or begin another folder with it",
        )
    for field in FIXED:
        section, _, name = field.rpartition(".")
        kept = _value(folder, field)
        if field in given and _value(protocol, field) != kept:
            raise ProtocolError(
                field,
                got=repr(_value(protocol, field))[:200],
                allowed=f"{repr(kept)[:200]}, with which this folder was begun and which all its tasks share",
                remedy="leave the setting out, or begin another folder with it",
            )
        if section:
            part = getattr(protocol, section).model_copy(update={name: kept})
            protocol = protocol.model_copy(update={section: part})
        else:
            protocol = protocol.model_copy(update={name: kept})
    return protocol


def _value(protocol: Protocol, field: str) -> Any:
    value: Any = protocol
    for part in field.split("."):
        value = getattr(value, part)
    return value
