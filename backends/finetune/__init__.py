"""Sequential fine-tuning with CRMA: tasks in sequence on one base model, by PyTorch or JAX.

    from backends.finetune import learn, load_task                                    # an assistant, task after task
    from backends.finetune import AdapterRegistry, finetune, read_results, read_task  # experiments on fixed sequences

Everything is loaded when it is first used: the names of this package need no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.finetune.inference.exported_task import load_task
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.learning.export import export
    from backends.finetune.learning.forget import forget
    from backends.finetune.learning.learn import learn
    from backends.finetune.runs.assistant_folder import Assistant
    from backends.finetune.runs.results import RunResults, read_results
    from backends.finetune.tasks.task import Task, read_task
    from backends.finetune.training.finetune import finetune

__all__ = [
    "AdapterRegistry",
    "Assistant",
    "RunResults",
    "Task",
    "export",
    "finetune",
    "forget",
    "learn",
    "load_task",
    "read_results",
    "read_task",
]
_HOMES = {
    "AdapterRegistry": "inference.registry",
    "Assistant": "runs.assistant_folder",
    "RunResults": "runs.results",
    "Task": "tasks.task",
    "export": "learning.export",
    "finetune": "training.finetune",
    "forget": "learning.forget",
    "learn": "learning.learn",
    "load_task": "inference.exported_task",
    "read_results": "runs.results",
    "read_task": "tasks.task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
