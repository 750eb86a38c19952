"""What goes wrong inside an engine, for tests: in this process, or in each of torchrun's.

A fault is a text, so that it reaches another process: ``interrupted 9`` raises KeyboardInterrupt in the place of the
ninth step, ``not-finite 9`` gives the ninth step a loss that is NaN.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

ENGINES = {
    "torch": "backends.finetune.engines.torch.engine.TorchEngine",
    "jax": "backends.finetune.engines.jax.engine.JaxEngine",
}


def spoil(engine: str, fault: str, change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the engine of this process fail so; ``change`` sets an attribute (monkeypatch's undoes it)."""
    kind, _, call = fault.partition(" ")
    path, _, name = ENGINES[engine].rpartition(".")
    module = import_module(path)
    owner, attribute = (getattr(module, name), "step") if kind == "interrupted" else (module, "check_step")
    original, calls = getattr(owner, attribute), []

    def failing(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == int(call):
            if kind == "interrupted":
                raise KeyboardInterrupt
            arguments = (arguments[0]._replace(loss=float("nan")), *arguments[1:])
        return original(*arguments, **more)

    change(owner, attribute, failing)


if __name__ == "__main__":
    from backends.finetune.cli import main

    spoil("torch", sys.argv[1])
    sys.exit(main(sys.argv[2:]))
