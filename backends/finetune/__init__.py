"""Sequential fine-tuning with CRMA: tasks in sequence on one base model, by PyTorch or JAX.

    from backends.finetune import AdapterRegistry, finetune, load_task, read_results

Everything is loaded when it is first used: the names of this package need no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.runs.results import RunResults, read_results
    from backends.finetune.tasks.task import Task, load_task
    from backends.finetune.training.finetune import finetune

__all__ = ["AdapterRegistry", "RunResults", "Task", "finetune", "load_task", "read_results"]
_HOMES = {
    "AdapterRegistry": "inference.registry",
    "RunResults": "runs.results",
    "Task": "tasks.task",
    "finetune": "training.finetune",
    "load_task": "tasks.task",
    "read_results": "runs.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
