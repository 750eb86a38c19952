"""Sequential fine-tuning: the names of ``backends.finetune``, each loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import backends.finetune
from backends.finetune import __all__ as __all__

if TYPE_CHECKING:
    from backends.finetune import *


def __getattr__(name: str) -> Any:
    return getattr(backends.finetune, name)
