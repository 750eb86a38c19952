"""The dtype that weights are loaded in, and whether the device computes with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backends.jax.decoder.config import DecoderConfig
from backends.weight_files import DTYPES, Entry
from reference.errors import DeviceUnavailableError, ModelError

SUPPORTED = tuple(DTYPES.values())


def resolve_dtype(dtype: Any, config: DecoderConfig, entries: dict[str, Entry], device: Any = None) -> np.dtype:
    """The dtype asked for, else that of config.json, else the one that all tensors are stored in.

    Raises: ModelError for a dtype that is unknown, stored or asked for, and where the tensors disagree;
    DeviceUnavailableError for one that the device does not compute with, float64 without x64 included.
    """
    for name, entry in entries.items():
        if entry.dtype not in SUPPORTED:
            raise ModelError(
                f"{entry.file}: {name}",
                got=f"dtype {entry.dtype}",
                allowed=", ".join(SUPPORTED),
                remedy="take the model without quantization, or save it in bfloat16",
            )
    stored = {entry.dtype for entry in entries.values()}
    wanted = dtype if dtype is not None else config.dtype
    if wanted is None and len(stored) > 1:
        got, remedy = " and ".join(sorted(stored)), 'choose one: dtype="float32" or dtype="bfloat16"'
        raise ModelError("dtype", got=f"tensors stored in {got}", allowed="one dtype for all", remedy=remedy)
    wanted = stored.pop() if wanted is None else wanted
    try:
        target = jnp.dtype(wanted)
    except TypeError:
        target = None
    if target is None or target.name not in SUPPORTED:
        raise ModelError("dtype", got=repr(wanted), allowed=", ".join(SUPPORTED), remedy='take dtype="float32"')
    _check_device(target, device)
    return target


def _check_device(dtype: np.dtype, device: Any) -> None:
    wide = "set JAX_ENABLE_X64=1 before the program starts, or " if dtype.itemsize == 8 else ""
    remedy = wide + 'load the weights with dtype="float32"'
    if dtype.itemsize == 8 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        got = "float64 while JAX has x64 off, which would round every array to float32"
        raise DeviceUnavailableError("dtype", got=got, allowed="float32, bfloat16, float16", remedy=remedy)
    if isinstance(device, jax.sharding.Sharding):  # which may not fit the little matrix
        device = next(iter(device.addressable_devices))
    try:
        ones = jax.device_put(np.ones((2, 2), dtype), device)
        result = jax.block_until_ready(ones @ ones)
    except (jax.errors.JaxRuntimeError, TypeError, ValueError, NotImplementedError) as error:
        got = f"{dtype.name} on {device or jax.devices()[0]}, which says {str(error).splitlines()[0][:200]}"
        raise DeviceUnavailableError("dtype", got=got, allowed="a dtype the device has", remedy=remedy) from error
    if result.dtype != dtype:
        got = f"{dtype.name}, from which the device makes {result.dtype}"
        raise DeviceUnavailableError("dtype", got=got, allowed="a dtype the device has", remedy=remedy)
