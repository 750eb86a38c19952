"""What a backend cannot do is refused before anything is loaded or written. Source: ours."""

from __future__ import annotations

from collections.abc import Iterable

from backends.finetune.conditions import Condition
from backends.finetune.protocol import Protocol
from reference.errors import ProtocolError


def check_supported(protocol: Protocol, conditions: Iterable[Condition], backend: str, *, shard: bool) -> None:
    """Raises: ProtocolError, naming the condition or the field that this backend cannot run."""
    if backend.startswith("jax-"):
        _check_jax(protocol, conditions)
        return
    if shard and protocol.quantization != "none":
        raise ProtocolError(
            "quantization",
            got=f"{protocol.quantization!r} with --shard",
            allowed="unquantized weights with --shard, whose slices are not those of a quantized block",
            remedy="leave one of the two out; every process then holds the whole quantized model",
        )
    for condition in conditions:
        if condition.trains == "full" and (shard or protocol.quantization != "none"):
            raise ProtocolError(
                "conditions",
                got="full with " + ("--shard" if shard else f"quantization {protocol.quantization!r}"),
                allowed="full on whole, unquantized weights",
                remedy="leave full out of --conditions, or run it by itself on a device that holds the model",
            )


def _check_jax(protocol: Protocol, conditions: Iterable[Condition]) -> None:
    for condition in conditions:
        plain = condition.trains in ("per-task", "shared") and condition.baseline == "none"
        if not plain or condition.crma == "unconstrained":
            raise _only_torch("conditions", condition.name)
    for field in ("accumulation", "packing", "quantization"):
        if (got := getattr(protocol, field)) != Protocol.model_fields[field].default:
            raise _only_torch(field, repr(got))


def _only_torch(field: str, got: str) -> ProtocolError:
    return ProtocolError(
        field,
        got=f"{got}, with a JAX backend",
        allowed="naive, frozen and modular with their controls other than modular-unconstrained; one unpacked batch a "
        "step; whole weights",
        remedy="choose --backend torch-cpu or torch-cuda",
    )
