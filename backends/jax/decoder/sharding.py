"""Where the weights, the trainables and a batch lie on a mesh of devices with the axes "data" and "model".

The projections that read the residual stream are split by their outputs, those that write into it by their inputs
(Megatron-LM, arXiv 1909.08053); embedding and head by the vocabulary. XLA puts the sums and exchanges between devices
into the compiled program (GSPMD, arXiv 2105.04663), so the decoder itself knows nothing of the mesh, and a split can
cost time but never changes what is computed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from backends.jax.decoder.config import DecoderConfig
from reference.errors import ConfigError, DeviceUnavailableError, ShapeError

DATA, MODEL = "data", "model"
WRITERS = ("self_attn.o_proj", "mlp.down_proj")  # into the residual stream; every other projection reads it


def make_mesh(data: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of ``data * model`` devices: each of ``data`` groups has all the weights, spread over ``model`` devices.

    Args:
        devices: those to choose from, the first ``data * model`` of them; by default all that JAX sees.

    Raises: ConfigError for a size below 1, DeviceUnavailableError where there are too few devices.
    """
    for name, size in ((DATA, data), (MODEL, model)):
        if type(size) is not int or size < 1:
            raise ConfigError(name, got=repr(size), allowed="an integer of at least 1", remedy=f"take {name}=1")
    found = list(jax.devices() if devices is None else devices)
    needed = data * model
    if len(found) < needed:
        kind = found[0].platform if found else "no"
        raise DeviceUnavailableError(
            "mesh",
            got=f"data {data} x model {model} = {needed} devices, while there are {len(found)} ({kind})",
            allowed=f"at most {len(found)} devices",
            remedy="take a smaller mesh; to try a mesh without accelerators set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed} before JAX starts",
        )
    # With the default, Explicit, every operation would have to say how its result is sharded.
    return jax.make_mesh((data, model), (DATA, MODEL), devices=found[:needed], axis_types=(AxisType.Auto,) * 2)


def parameter_spec(config: DecoderConfig, path: str, model: int) -> PartitionSpec:
    """Which axis of a parameter is split over ``model`` devices; ``path`` is that of ``load_decoder``.

    =====================  ==========================  ================
    parameter              shape                       split
    =====================  ==========================  ================
    embedding, head        (vocab, d)                  vocab
    q, k, v, qkv           (layers, outputs, d)        outputs, by head
    gate, up, gate_up      (layers, outputs, d)        outputs
    their biases           (layers, outputs)           the same
    o, down                (layers, d, inputs)         inputs
    their biases, norms    (layers, d), the last (d,)  none
    =====================  ==========================  ================

    Where ``model`` does not divide the vocabulary, the heads (of keys for k and v, either kind for qkv), the MLP's
    width or the inputs, the parameter is not split, but whole on every device. The slices of a fused projection do not
    end where a device's share does, so devices exchange activations there.

    Raises: ConfigError for a path that the decoder does not have.
    """
    name, _, kind = path.removeprefix("layers/").rpartition(".")
    if path == "norm" or (name in config.norms and kind == "weight"):
        return PartitionSpec()
    if path in ("embedding", "head"):
        return _split(0, 2, config.vocab_size, model)
    if name not in config.projections or kind not in ("weight", "bias"):
        allowed = "embedding, head, norm, layers/NAME.weight or layers/NAME.bias with NAME one of "
        names = ", ".join((*config.projections, *config.norms))
        raise ConfigError("path", got=repr(path), allowed=allowed + names, remedy="take a path that load_decoder gives")
    outputs, inputs = config.projections[name]
    if name in WRITERS:
        return _split(2, 3, inputs, model) if kind == "weight" else PartitionSpec()
    # Half a head here and half there would make attention exchange its scores, or the keys and values of all tokens.
    parts = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    parts |= {"qkv": math.gcd(config.heads, config.kv_heads), "gate_up": config.intermediate_size}
    count = parts.get(name.partition(".")[2].removesuffix("_proj"), outputs)
    return _split(1, 3 if kind == "weight" else 2, count, model)


def _split(axis: int, axes: int, parts: int, model: int) -> PartitionSpec:
    if parts % model:
        return PartitionSpec()
    return PartitionSpec(*(MODEL if k == axis else None for k in range(axes)))


def place_on(mesh: Mesh, config: DecoderConfig) -> Callable[[str, np.ndarray], jax.Array]:
    """A function from a parameter's path and host array to the array on the mesh; each device gets its part only."""
    model = _size(mesh, MODEL)

    def place(path: str, array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, parameter_spec(config, path, model))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return place


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The same arrays, whole on every device: for LoRA, the CRMA parameters, and the state of their optimizer.

    Give ``jax.jit`` of a training step ``out_shardings=whole(mesh)``: otherwise XLA leaves some updated factors split,
    and the next step is compiled again.
    """
    return jax.device_put(tree, whole(mesh))


def shard_batch(mesh: Mesh | AbstractMesh, arrays: Any) -> Any:
    """Arrays with a leading axis of examples, spread over the axis "data": ids, labels, mask, in any pytree.

    Raises: ShapeError where the number of examples is not a multiple of that axis.
    """
    data = _size(mesh, DATA)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        shape = np.shape(leaf)
        if not shape or shape[0] % data:
            raise ShapeError(
                f"batch{jax.tree_util.keystr(path)}",
                got=f"shape {shape}",
                allowed=f"a number of examples that is a multiple of {data}, the axis {DATA!r} of the mesh",
                remedy="choose such a batch size, or fill the batch up with examples whose labels are all -100",
            )
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec(DATA)))


def _size(mesh: Mesh | AbstractMesh, axis: str) -> int:
    if axis not in mesh.shape:
        got, remedy = f"axes {mesh.axis_names}", "build it with make_mesh(data, model)"
        raise ConfigError("mesh", got=got, allowed=f"axes {DATA!r} and {MODEL!r}", remedy=remedy)
    return int(mesh.shape[axis])
