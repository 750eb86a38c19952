"""What a backend cannot do is refused before anything is loaded or written."""

from collections.abc import Iterable

from backends.finetune.methods.conditions import KNOWN
from backends.finetune.methods.lwf import LearningWithoutForgetting
from backends.finetune.methods.method import Condition, Method
from backends.finetune.protocols.protocol import Protocol
from reference.errors import BackendError, ConfigError, ProtocolError


def check_backend(name: str) -> None:
    """Raises: BackendError for a backend that cannot train."""
    if name not in ("torch-cpu", "torch-cuda", "jax-cpu", "jax-cuda"):
        raise BackendError(
            "backend",
            got=repr(name),
            allowed="torch-cpu, torch-cuda, jax-cpu or jax-cuda for fine-tuning",
            remedy="choose one of these; the others compute the adapter only",
        )


def check_supported(
    protocol: Protocol, conditions: Iterable[Condition], backend: str, *, shard: bool, random_weights: str | None = None
) -> None:
    """Refuse what cannot be run.

    Args:
        random_weights: size ("full", "reduced") of the base model, if its weights are random.

    Raises: BackendError as :func:`check_backend`; ProtocolError, naming the condition or the field that this backend
        cannot run; ConfigError for random weights that it cannot have.
    """
    check_backend(backend)
    conditions = list(conditions)
    for condition in conditions:
        if condition.ratchet and not protocol.decision:
            raise ProtocolError(
                "decision",
                got=f"0 with {condition.name}",
                allowed="texts by which each task's version is chosen, which are not those that are reported",
                remedy="add --set decision=32",
            )
    if backend.startswith("jax-"):
        _check_jax(protocol, conditions)
    else:
        _check_torch(protocol, conditions, shard)
    if random_weights is not None:
        _check_random(protocol, backend, random_weights)


def _check_torch(protocol: Protocol, conditions: Iterable[Condition], shard: bool) -> None:
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


def _check_random(protocol: Protocol, backend: str, size: str) -> None:
    if protocol.quantization != "none":
        raise ProtocolError(
            "quantization",
            got=f"{protocol.quantization!r} with random weights",
            allowed="'none', since only weights that are read from files are quantized",
            remedy="add --set quantization=none, or take a model with weights of its own",
        )
    if size == "full" and backend.startswith("jax-"):
        raise ConfigError(
            "random weights",
            got=f"full size with {backend}",
            allowed="reduced size with a JAX backend, which reads weights from files; those of full size are in none",
            remedy="--random-weights reduced, or --backend torch-cpu or torch-cuda",
        )


def _check_jax(protocol: Protocol, conditions: Iterable[Condition]) -> None:
    for condition in conditions:
        known = condition.method is Method or issubclass(condition.method, LearningWithoutForgetting)
        plain = condition.trains in ("per-task", "shared") and known
        if not plain or condition.crma == "unconstrained":
            raise _only_torch("conditions", condition.name)
    for field in ("accumulation", "packing", "quantization"):
        if (got := getattr(protocol, field)) != Protocol.model_fields[field].default:
            raise _only_torch(field, repr(got))


def _only_torch(field: str, got: str) -> ProtocolError:
    return ProtocolError(
        field,
        got=f"{got}, with a JAX backend",
        allowed="naive, frozen and modular with their controls other than modular-unconstrained, and lwf; one unpacked "
        "batch a step; whole weights",
        remedy="choose --backend torch-cpu or torch-cuda",
    )


def idle_settings(protocol: Protocol, settings: Iterable[str]) -> list[str]:
    """Those of the FIELD=VALUE in ``settings`` that belong to sections which no condition of the protocol reads."""
    conditions = [protocol.condition(name) for name in protocol.conditions]
    read = {condition.settings_section for condition in conditions}
    read |= {"crma"} if any(condition.crma != "none" for condition in conditions) else set()
    read |= {"lora"} if any(condition.trains != "full" for condition in conditions) else set()
    sections = {condition.settings_section for condition in KNOWN.values()} | {"crma", "lora"}
    return [each for each in settings if each.partition("=")[0].partition(".")[0].strip() in sections - read]
