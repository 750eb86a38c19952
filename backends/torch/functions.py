"""Which implementation computes the adapter: the Triton kernels or plain PyTorch, chosen by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from backends.torch.residual_mixing import residual_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference.errors import ConfigError, MissingPackageError

Kernels = Literal["auto", "torch", "triton"]


class Functions(NamedTuple):
    """The two functions that an adapter is made of."""

    sinkhorn_projection: Callable[[Tensor, int], Tensor]
    residual_mixing: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def checked_kernels(kernels: str) -> Kernels:
    """``kernels``, one of "auto", "torch" and "triton". Raises: ConfigError."""
    if kernels not in get_args(Kernels):
        raise ConfigError(
            "kernels",
            got=repr(kernels),
            allowed=", ".join(map(repr, get_args(Kernels))),
            remedy="use 'auto': Triton on CUDA devices, plain PyTorch elsewhere",
        )
    return kernels  # type: ignore[return-value]  # checked above


_LOADED = {"torch": Functions(sinkhorn_projection, residual_mixing)}


def functions(kernels: Kernels, device_type: str) -> Functions:
    """The functions behind a choice: "torch", "triton", or "auto", which is "triton" on ``cuda`` and "torch" elsewhere.

    No choice falls back to another: where Triton is missing, "auto" on a GPU is an error that names "torch".

    Raises: MissingPackageError. Clause: ERR-3.
    """
    name = "triton" if kernels == "triton" or (kernels == "auto" and device_type == "cuda") else "torch"
    if name not in _LOADED:  # which torch.compile cannot trace: adapters load before (CRMAAdapter)
        _LOADED[name] = _triton_functions()
    return _LOADED[name]


def _triton_functions() -> Functions:
    try:
        from backends.torch.kernels import residual_mixing as mixing_kernel
        from backends.torch.kernels import sinkhorn_projection as projection_kernel
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "kernels",
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'triton', on Linux",
            remedy="pip install 'crma[triton]', or ask for kernels='torch', the same functions in plain PyTorch",
        ) from error
    return Functions(projection_kernel, mixing_kernel)
