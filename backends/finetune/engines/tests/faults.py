"""What goes wrong inside a run, for tests: in this process, in each of torchrun's, or in one of them.

A fault is a text, so that it reaches another process. In the ninth step ``interrupted 9`` raises KeyboardInterrupt,
``killed 9`` sends SIGKILL, ``out-of-memory 9`` raises what an allocator does, ``nan-loss 9`` computes a loss that is
NaN, and ``not-finite 9`` reports one. ``interrupted-anywhere 9`` and ``killed-anywhere 9`` count whatever an engine
does and what becomes of files. Behind it `` in 1`` names the process of torchrun that it happens to.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import count
from typing import Any

from backends.finetune.engines.tests.processes import Ended, torchrun

ENGINES = {
    "torch": "backends.finetune.engines.torch.engine.TorchEngine",
    "jax": "backends.finetune.engines.jax.engine.JaxEngine",
}
OF_ENGINES = ("begin_phase", "step", "finish_phase", "scores", "save_phase", "save_checkpoint")
OF_FILES = ("replace", "rename", "fsync", "unlink")


def spoil(engine: str, fault: str, change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the engine of this process fail so; ``change`` sets an attribute (monkeypatch's undoes it)."""
    kind, _, call = fault.partition(" ")
    path, _, name = ENGINES[engine].rpartition(".")
    module = import_module(path)
    owner = getattr(module, name)
    places = [(owner, "step")]
    if kind == "not-finite":
        places = [(module, "check_step")]
    elif kind.endswith("-anywhere"):
        places = [*((owner, name) for name in OF_ENGINES), *((os, name) for name in OF_FILES)]
    calls = count(1)

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(first: Any, *arguments: Any, **more: Any) -> Any:
            if next(calls) == int(call):
                match kind.removesuffix("-anywhere"):
                    case "interrupted":
                        raise KeyboardInterrupt
                    case "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "out-of-memory":
                        raise RuntimeError("out of memory")
                    case "nan-loss":
                        first._loss = lambda batch, loss=first._loss: (float("nan") * loss(batch)[0], loss(batch)[1])
                    case "not-finite":
                        first = first._replace(loss=float("nan"))
            return original(first, *arguments, **more)

        return wrapper

    for place, attribute in places:
        change(place, attribute, failing(getattr(place, attribute)))


def with_fault(engine: str, fault: str) -> tuple[str, ...]:
    """What to start python with, in place of ``-m backends.finetune.cli``."""
    return "-m", spoil.__module__, engine, fault


def torchrun_with(fault: str, arguments: list[str]) -> Ended:
    """The command in two processes with a fault."""
    return torchrun(arguments, with_fault("torch", fault))


if __name__ == "__main__":
    from backends.finetune.cli import main

    _, engine, fault, *arguments = sys.argv
    fault, _, rank = fault.partition(" in ")
    if rank in ("", os.environ.get("RANK")):
        spoil(engine, fault)
    sys.exit(main(arguments))
