"""The functions of CRMA as Triton kernels, with the signatures of the plain ones.

>>> from backends.torch.kernels import residual_mixing, sinkhorn_projection  # doctest: +SKIP

They need the extra ``triton`` and a GPU. On the CPU they run in Triton's interpreter, if ``TRITON_INTERPRET=1`` is set
when they are first used, or if ``load_backend("torch-triton")`` uses them first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.torch.kernels.launch import INTERPRETED
    from backends.torch.kernels.residual_mixing import residual_mixing
    from backends.torch.kernels.sinkhorn_projection import sinkhorn_projection

__all__ = ["INTERPRETED", "residual_mixing", "sinkhorn_projection"]

_MODULES = {"INTERPRETED": "launch", "residual_mixing": "residual_mixing", "sinkhorn_projection": "sinkhorn_projection"}


def __getattr__(name: str) -> Any:
    """Kernels are made for the GPU or for the interpreter when their module is imported: as late as can be."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {each: importlib.import_module(f"{__name__}.{module}") for each, module in _MODULES.items()}
    # Set, since importing a submodule has bound its name to the module.
    globals().update({each: getattr(module, each) for each, module in modules.items()})
    return globals()[name]
