"""Load a Hugging Face folder into stacked weights, tensor by tensor, so that the host holds one stacked projection."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from backends.jax.decoder.config import DecoderConfig
from backends.jax.decoder.device_dtype import resolve_dtype
from backends.jax.decoder.model import Params
from backends.jax.decoder.products import FrozenWeight
from backends.jax.decoder.read_config import read_config
from backends.jax.decoder.sharding import place_on, whole
from backends.weight_files import Entry, find_tensors, open_shards
from reference.errors import ModelError

Reader = Callable[[str], np.ndarray]
#: (path in the parameters, host array) -> array on the devices
Place = Callable[[str, np.ndarray], jax.Array]


class Stack(NamedTuple):
    """One array of the parameters: the tensors it is stacked from, or the one it is, and the shape of each of them."""

    path: tuple[str, ...]
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool


def load_decoder(
    folder: str | Path,
    *,
    dtype: Any = None,
    device: Any = None,
    place: Place | None = None,
    matmul_dtype: Any = None,
) -> tuple[Params, DecoderConfig]:
    """Weights and configuration of a model folder with config.json and model.safetensors, or shards with their index.

    Args:
        dtype: of the weights: "float32", "bfloat16", "float16", or "float64" where JAX has x64 on. By default the one
            that config.json names, else the one the tensors are stored in.
        device: a ``jax.Device`` or ``jax.sharding.Sharding`` for all weights, or a mesh (:func:`make_mesh`) over which
            they are spread as :func:`parameter_spec` says; the default device where None.
        place: puts each array on the devices instead, e.g. by a sharding that depends on its path, such as
            "layers/self_attn.q_proj.weight".
        matmul_dtype: of 16 bits, the one of :func:`backends.jax.decoder.logits`. Projections and head are kept in it,
            so that no pass rounds them again, to the same results; the projections (:class:`FrozenWeight`, of which
            ``place`` gets the bits) have no gradient then, and a tied head is an array of its own.

    Raises: ModelError, naming file, tensor, what was expected and found, also for values that are not finite;
    MissingPackageError; DeviceUnavailableError.
    """
    folder = Path(folder)
    config = read_config(folder)
    entries = find_tensors(folder)
    stacks = layout(config)
    check_tensors(folder, entries, stacks, config)
    if isinstance(device, jax.sharding.Mesh):
        place, device = place or place_on(device, config), whole(device)
    target = resolve_dtype(dtype, config, {name: entries[name] for stack in stacks for name in stack.tensors}, device)
    put = place or (lambda path, array: jax.device_put(array, device))
    rounded = None if matmul_dtype is None else jnp.dtype(matmul_dtype)
    projections = {f"{path}.weight" for path in config.projections}
    if rounded not in (None, target) and config.tied:
        stacks.append(stacks[0]._replace(path=("head",)))
    params: Params = {"layers": {}}
    with open_shards(entries) as read:
        _check_tied_head(read, entries, config)
        for stack in stacks:
            holder = params["layers"] if len(stack.path) == 2 else params
            name = stack.path[-1]
            if rounded is not None and name in projections:
                bits = _gather(read, stack, rounded, entries).view(np.uint16)
                holder[name] = FrozenWeight(_put(put, stack, bits, folder), rounded)
            else:
                kept = target if rounded is None or name != "head" else rounded
                holder[name] = _put(put, stack, _gather(read, stack, kept, entries), folder)
            gc.collect(0)  # until the next collection, JAX holds on to the host array it has copied
    return params, config


def read_layers(folder: str | Path, config: DecoderConfig, name: str, dtype: Any) -> np.ndarray:
    """One parameter of all layers on the host, such as "mlp.down_proj.weight": (layers, ...).

    Raises: as :func:`load_decoder`, which has loaded the folder before.
    """
    entries = find_tensors(Path(folder))
    (stack,) = (stack for stack in layout(config) if stack.path == ("layers", name))
    with open_shards(entries) as read:
        return _gather(read, stack, jnp.dtype(dtype), entries)


def layout(config: DecoderConfig) -> list[Stack]:
    """Each array of the parameters, with the names that Hugging Face gives to its tensors."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (config.hidden_size,) for name in config.norms}
    for path, (outputs, inputs) in config.projections.items():
        shapes[f"{path}.weight"] = (outputs, inputs)
        if config.attention_bias if path.startswith("self_attn.") else config.mlp_bias:
            shapes[f"{path}.bias"] = (outputs,)
    table, hidden = (config.vocab_size, config.hidden_size), (config.hidden_size,)
    stacks = [
        Stack(("embedding",), ("model.embed_tokens.weight",), table, stacked=False),
        Stack(("norm",), ("model.norm.weight",), hidden, stacked=False),
    ]
    if not config.tied:
        stacks.append(Stack(("head",), ("lm_head.weight",), table, stacked=False))
    for name, shape in shapes.items():
        tensors = tuple(f"model.layers.{index}.{name}" for index in range(config.layers))
        stacks.append(Stack(("layers", name), tensors, shape, stacked=True))
    return stacks


def check_tensors(folder: Path, entries: dict[str, Entry], stacks: list[Stack], config: DecoderConfig) -> None:
    """Raise ModelError unless the files hold the expected tensors in the expected shapes, and no others."""
    expected = {name: stack.shape for stack in stacks for name in stack.tensors}
    again = "check that config.json and the weights belong to the same model; copy or download it again"
    for name, shape in expected.items():
        if name not in entries:
            got = f"no such tensor among {len(entries)}"
            raise ModelError(f"{folder}: {name}", got=got, allowed=f"a tensor of shape {shape}", remedy=again)
        if entries[name].shape != shape:
            got = f"shape {entries[name].shape}"
            raise ModelError(f"{entries[name].file}: {name}", got=got, allowed=f"shape {shape}", remedy=again)
    # Early Llama files store the frequencies too, which are computed here; a tied head may be stored twice.
    extra = {"lm_head.weight"} if config.tied else set()
    unexpected = [n for n in entries if n not in expected and n not in extra and not n.endswith(".rotary_emb.inv_freq")]
    if unexpected:
        name = unexpected[0]
        raise ModelError(
            f"{entries[name].file}: {name}",
            got=f"{len(unexpected)} unexpected tensors, this one of shape {entries[name].shape}",
            allowed=f"the {len(expected)} tensors of a {config.model_type} of {config.layers} layers, "
            f"attention_bias {config.attention_bias}, mlp_bias {config.mlp_bias}",
            remedy=again,
        )


def _check_tied_head(read: Reader, entries: dict[str, Entry], config: DecoderConfig) -> None:
    name = "lm_head.weight"
    if config.tied and name in entries and not np.array_equal(read(name), read("model.embed_tokens.weight")):
        raise ModelError(
            f"{entries[name].file}: {name}",
            got="other values than model.embed_tokens.weight",
            allowed="the same values, as config.json says tie_word_embeddings true",
            remedy="set tie_word_embeddings to false in config.json if the head is meant to be its own",
        )


def _gather(read: Reader, stack: Stack, dtype: Any, entries: dict[str, Entry]) -> np.ndarray:
    if not stack.stacked:
        return _finite(read(stack.tensors[0]).astype(dtype, copy=False), stack.tensors[0], entries)
    whole = np.empty((len(stack.tensors), *stack.shape), dtype)
    for index, name in enumerate(stack.tensors):
        whole[index] = read(name)
        _finite(whole[index], name, entries)
    return whole


def _finite(array: np.ndarray, name: str, entries: dict[str, Entry]) -> np.ndarray:
    """The array; in bfloat16 by its exponent, which is all ones in NaN and infinity, since NumPy has no such dtype.

    Raises: ModelError, also where a value that is finite in the file is not in the dtype that was asked for.
    """
    if array.dtype.name == "bfloat16":
        whole = not ((array.view(np.uint16) & 0x7F80) == 0x7F80).any()
    else:
        whole = bool(np.isfinite(array).all())
    if not whole:
        raise ModelError(
            f"{entries[name].file}: {name}",
            got="a tensor with NaN or infinity",
            allowed=f"finite numbers, in {array.dtype.name}",
            remedy="copy or download the model again; in float16, which ends at 65504, choose another dtype",
        )
    return array


def _put(put: Place, stack: Stack, array: np.ndarray, folder: Path) -> jax.Array:
    path = "/".join(stack.path)
    try:
        placed = put(path, array)
        jax.block_until_ready(placed)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ModelError(
            f"{folder}: {path}",
            got=f"{array.nbytes / 2**20:.0f} MiB of {jnp.dtype(array.dtype).name} for which the device has no memory",
            allowed="a model that fits into the device's free memory",
            remedy='load it with dtype="bfloat16", or spread it over devices with device=make_mesh(data, model)',
        ) from error
    return placed
