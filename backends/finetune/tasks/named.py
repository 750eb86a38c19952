"""Tasks that a protocol draws by name: the domains of real text, and the invented ones.

A domain can come in parts that have no text in common: "Legal I", "Legal II", "Legal III".
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.domains import DOMAINS, load_domain
from backends.finetune.tasks.fictional import FICTIONAL, load_fictional
from backends.finetune.tasks.task import Task, with_decision
from reference.errors import TaskDataError

NAMED = (*DOMAINS, *FICTIONAL)
PARTS = ("I", "II", "III")


def domain_of(name: str) -> str:
    """The domain of a part, such as "Legal II"; any other name as it is."""
    domain, _, part = name.rpartition(" ")
    return domain if part in PARTS and domain in NAMED else name


def drawn_order(names: Sequence[str], seed: int) -> list[int]:
    """An order of the tasks, drawn by ``seed``, in which the parts of a domain come as the names have them."""
    order = np.random.default_rng([seed, len(names)]).permutation(len(names)).tolist()
    waiting: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        waiting.setdefault(domain_of(name), []).append(index)
    return [waiting[domain_of(names[index])].pop(0) for index in order]


def is_named(name: str) -> bool:
    """Whether :func:`named_task` draws it."""
    return domain_of(name) in NAMED


def named_task(protocol: Protocol, name: str, seed: int) -> Task:
    """The task of one name at a protocol's size, drawn with ``seed``.

    Raises: TaskDataError for an unknown name, and where the protocol's tasks come from files and so have no size.
    """
    if protocol.train is None or protocol.holdout is None:
        raise TaskDataError(
            f"task {name}",
            got="no number of examples to draw, since the run's tasks were read from files",
            allowed="the files of the run",
            remedy=f"give them again: --task {name}=TRAIN.jsonl:HOLDOUT.jsonl",
        )
    domain = domain_of(name)
    part = 0 if domain == name else PARTS.index(name.removeprefix(domain).strip())
    sizes = {"train": protocol.train, "holdout": protocol.holdout + protocol.decision}
    if domain in FICTIONAL:
        sizes["canaries"] = protocol.canaries
    load = load_fictional if domain in FICTIONAL else load_domain
    task = load(domain, seed=seed, **{side: count * (part + 1) for side, count in sizes.items()})
    # a larger draw starts with the smaller one
    own = {side: getattr(task, side)[part * count :] for side, count in sizes.items()}
    return with_decision(replace(task, name=name, **own), protocol.decision)
