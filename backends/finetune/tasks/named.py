"""Tasks that a protocol draws by name: the domains of real text, and the invented ones."""

from backends.finetune.protocols.protocol import Protocol
from backends.finetune.tasks.domains import DOMAINS, load_domain
from backends.finetune.tasks.fictional import FICTIONAL, load_fictional
from backends.finetune.tasks.task import Task, with_decision
from reference.errors import TaskDataError

NAMED = (*DOMAINS, *FICTIONAL)


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
    counts = {"train": protocol.train, "holdout": protocol.holdout + protocol.decision, "seed": seed}
    if name in FICTIONAL:
        task = load_fictional(name, canaries=protocol.canaries, **counts)
    else:
        task = load_domain(name, **counts)
    return with_decision(task, protocol.decision)
