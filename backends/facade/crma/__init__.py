"""Everything under one name: ``crma.torch``, ``crma.jax``, ``crma.finetune``, ``crma.reference``.

    from crma.torch import CRMAAdapter  # the same object as backends.torch.CRMAAdapter

A part, and with it its framework, is loaded when it is first used. Importing ``crma`` fails with the name of the folder
where another folder of the name ``backends`` or ``reference`` hides those of this installation.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backends

_HERE = Path(__file__).resolve().parent
#: The folder of ``backends``: beside this one where a wheel is installed, around this one in a checkout.
_HOME = _HERE.parents[1] if _HERE.parent.name == "facade" else _HERE.parent / "backends"
_places = getattr(backends, "__path__", [backends.__file__])
if _HOME not in [Path(str(place)).resolve() for place in _places]:
    raise ImportError(
        f"package backends: got {next(iter(_places))}, which hides the one that belongs to {_HERE}; allowed: {_HOME}. "
        "Try: rename the other, or start from another folder"
    )

if TYPE_CHECKING:
    from backends import BACKENDS, load_backend
    from crma import finetune, jax, reference, torch

__all__ = ["BACKENDS", "finetune", "jax", "load_backend", "reference", "torch"]


def __getattr__(name: str) -> Any:
    if name in ("BACKENDS", "load_backend"):
        return getattr(backends, name)
    if name in __all__:
        return import_module(f"crma.{name}")
    raise AttributeError(f"module 'crma' has no attribute {name!r}")
