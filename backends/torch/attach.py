"""attach_crma: make an adapter the submodule ``crma`` of every decoder block of a Hugging Face causal LM."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import islice
from numbers import Integral
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backends.architecture import architecture_digest, describe
from backends.torch.adapter import PARAMETERS, CRMAAdapter, is_replica
from backends.torch.backbone import CRMABackbone, refuse_other_adapters
from backends.torch.decoder import Decoder, base_model, find_decoder, refusal, text_config
from backends.torch.functions import Kernels
from backends.torch.preparation import prepare_adapters
from backends.torch.writer import writers
from reference.adapter import AdapterConfig
from reference.errors import ConfigError, ModelError
from reference.initialization import GATE_LOGIT, init_parameters


@torch.inference_mode(False)  # what is made in that mode could not be trained
def attach_crma(
    model: nn.Module,
    config: AdapterConfig | None = None,
    *,
    basis: Literal["random", "principal"] = "random",
    skip_directions: int = 0,
    gate_logit: float = GATE_LOGIT,
    seed: int = 0,
    kernels: Kernels = "auto",
) -> CRMABackbone:
    """Attach one CRMAAdapter after every decoder block of ``model``, in place.

    The blocks are found by what they do in two forward passes of four tokens. Each gets the submodule ``crma`` and a
    subclass of its own class whose forward ends in it: so the adapter runs inside gradient checkpointing, the base
    model's parameters keep their names, ``save_pretrained`` writes the base model alone, and PEFT's "all-linear" finds
    no linear layer. The adapters are trainable; nothing else's ``requires_grad`` is touched.

    With PEFT: best after ``get_peft_model``. Before it works too, but that function freezes all that is there, as does
    TRL's ``SFTTrainer(peft_config=...)``: call ``backbone.requires_grad_(True)`` after it. With transformers.Trainer
    ``callbacks=[CRMACallback(backbone)]``, or its checkpoints come without the adapters; it refuses to train where
    they are frozen. Attach before ``fully_shard`` or DistributedDataParallel. Gemma-2 needs
    ``attn_implementation="eager"``: with "sdpa", some releases of transformers drop its soft-capping.

    Args:
        model: a causal LM with attention (Llama, Mistral, Gemma, Phi, Qwen, OLMo, GPT-NeoX, GPT-2, Falcon, ...), in any
            precision, quantized or not, or a PeftModel around one.
        config: sizes; by default the model's hidden size with 4 streams of rank 4 and K = 20.
        basis: "random" orthonormal rows, or the "principal" directions of the matrix that writes last into the residual
            stream in each block (the MLP's output projection); that needs floating-point weights.
        skip_directions: with "principal", how many of the leading directions to leave out.
        gate_logit, seed: of the start values; layer l draws from (seed, l).
        kernels: "triton", "torch" (plain PyTorch), or "auto": Triton on CUDA devices, plain PyTorch elsewhere.

    Returns:
        The backbone, which holds the adapters. ``backbone.detach_from_model()`` undoes this function.

    Raises: ModelError, which says what was looked for; ConfigError; MissingPackageError.
    Clauses: INIT-1..INIT-4. Source: paper section 4; forum posts; the form, ours.
    """
    base = base_model(model)
    if any(isinstance(module, CRMAAdapter) for module in base.modules()):
        raise ModelError(
            "model",
            got=f"{type(base).__name__} with adapters already attached",
            allowed="a model without CRMA adapters",
            remedy="call detach_from_model() on the first backbone, or keep using it (attached_backbone finds it)",
        )
    if basis not in ("random", "principal"):
        raise ConfigError("basis", got=repr(basis), allowed="'random' or 'principal'", remedy="use 'random'")
    if skip_directions and basis == "random":
        raise ConfigError(
            "skip_directions", got=skip_directions, allowed="0 with basis='random'", remedy="leave it out"
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError("seed", got=repr(seed), allowed="an integer >= 0", remedy="use 0")
    if config is not None and not isinstance(config, AdapterConfig):
        raise ConfigError(
            "config", got=repr(config), allowed="an AdapterConfig or None", remedy="AdapterConfig(hidden_size, 4, 4)"
        )
    decoder = find_decoder(base)
    config = config or AdapterConfig(decoder.hidden_size)
    if config.hidden_size != decoder.hidden_size:
        raise ConfigError(
            "config.hidden_size",
            got=config.hidden_size,
            allowed=f"{decoder.hidden_size}, the model's",
            remedy="leave config out",
        )
    _refuse_replaced_forwards(base, decoder)
    _identity(base)  # a configuration that cannot be read is told before anything is changed
    matrices = writers(base, decoder) if basis == "principal" else [None] * len(decoder.names)
    adapters = []
    for index, (matrix, device) in enumerate(zip(matrices, decoder.devices, strict=True)):
        rng = np.random.default_rng([seed, index])
        start = init_parameters(config, rng, writer=matrix, skip_directions=skip_directions, gate_logit=gate_logit)
        sizes = (config.hidden_size, config.streams, config.rank, config.iterations)
        adapter = CRMAAdapter(*sizes, parameters=start, kernels=kernels)
        if adapter.basis.is_meta and device.type != "meta":  # under torch.device("meta") or init_empty_weights
            adapter.to_empty(device=device).reset_parameters()
        adapters.append(adapter.to(device))

    for block, adapter in zip(decoder.blocks, adapters, strict=True):
        block.add_module("crma", adapter)
        block_class: Any = type(block)  # Any, since mypy takes the class of a module for unhashable now and then
        _change_class(block, _class_with_crma(block_class))
    decoder.container.register_forward_pre_hook(partial(_prepare, decoder.attribute, adapters, decoder.names))
    decoder.container.register_forward_hook(partial(_release, decoder.attribute), always_call=True)
    if decoder.container is not base:
        base.register_forward_pre_hook(partial(_refuse_replaced_container, adapters, decoder.names))
    _leave_out_of_checkpoints(base, decoder.names, True)
    return _backbone(base, decoder.names)


def attached_backbone(model: nn.Module) -> CRMABackbone:
    """The backbone over the adapters that ``model`` carries already, for instance as a copy.deepcopy of another model.

    Raises: ModelError if it carries none.
    """
    base = base_model(model)
    for name, blocks in base.named_modules():
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        if all(isinstance(getattr(block, "crma", None), CRMAAdapter) for block in blocks):
            return _backbone(base, [f"{name}.{index}" for index in range(len(blocks))])
    raise refusal(base, "no CRMA adapters attached")


def prepared(model: nn.Module) -> AbstractContextManager[None]:
    """A block in which ``model`` generates: :meth:`CRMABackbone.prepare` where it carries adapters."""
    try:
        return attached_backbone(model).prepare()
    except ModelError:
        return nullcontext()


def _identity(base: nn.Module) -> tuple[str, str]:
    """What a state file says about the base model, as it is now: its vocabulary may be resized after attaching."""
    config = text_config(base)
    return describe(config), architecture_digest(config)


def _backbone(base: Any, names: list[str]) -> CRMABackbone:
    blocks: list[Any] = [base.get_submodule(name) for name in names]
    container = base.get_submodule(".".join(names[0].split(".")[:-2]))
    computing = partial(_computing, base, names)

    def detach() -> None:
        for name, block in zip(names, blocks, strict=True):
            _refuse_what_was_changed(base, name, block)
        refuse_other_adapters(computing(), adapters, names)
        for hooks in (base._forward_pre_hooks, container._forward_pre_hooks, container._forward_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, partial) and hook.func in (_prepare, _release, _refuse_replaced_container):
                    del hooks[key]
                    container._forward_hooks_always_called.pop(key, None)
        for block in blocks:
            _change_class(block, type(block).crma_attached_to)
            del block.crma
        _leave_out_of_checkpoints(base, names, False)

    def reshard() -> None:
        for module in base.modules():
            if callable(getattr(module, "reshard", None)):
                module.reshard()

    adapters = [block.crma for block in blocks]
    return CRMABackbone(
        adapters, names=names, identity=partial(_identity, base), computing=computing, detach=detach, reshard=reshard
    )


def _computing(base: nn.Module, names: Sequence[str], count: int | None = None) -> list[Any]:
    """What stands behind the (first ``count``) blocks of ``base`` now, found by name: through wrappers, into copies."""
    blocks: Any = base
    for part in names[0].split(".")[:-1]:
        blocks = getattr(blocks, part, None)
    return _behind(blocks, count)


def _behind(blocks: Any, count: int | None = None) -> list[Any]:
    try:  # getattr goes through wrappers, and is slow
        return [block._modules.get("crma") or getattr(block, "crma", None) for block in islice(blocks, count)]
    except TypeError:  # a wrapper that is no list
        return []


def _prepare(
    attribute: str, adapters: Sequence[CRMAAdapter], names: Sequence[str], container: nn.Module, args: tuple[Any, ...]
) -> None:
    # A deep copy of the model copies this hook too, with the copied adapters; a replica of DataParallel shares it.
    found = _behind(getattr(container, attribute))
    if not is_replica(container):
        refuse_other_adapters(found, adapters, names)
    if container.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _warn_of_frozen(found[0], container)
    prepare_adapters(found)


def _warn_of_frozen(adapter: CRMAAdapter, container: nn.Module) -> None:
    """get_peft_model freezes the adapters with the base model, and trains on without a word."""
    if not adapter.meant_to_train or any(parameter.requires_grad for parameter in adapter.parameters()):
        return
    if any(parameter.requires_grad for parameter in container.parameters()):
        warnings.warn(
            "the model trains, but its CRMA adapters are frozen (PEFT freezes what it finds): call "
            "backbone.requires_grad_(True) after get_peft_model, or backbone.requires_grad_(False) if it is meant so",
            stacklevel=2,
        )


def _refuse_replaced_container(
    adapters: Sequence[CRMAAdapter], names: Sequence[str], base: nn.Module, args: tuple[Any, ...]
) -> None:
    # A copy of the container alone is a whole that _prepare finds nothing wrong with.
    if not is_replica(base):
        refuse_other_adapters(_computing(base, names, 1), adapters[:1], names)


def _release(attribute: str, container: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    for adapter in _behind(getattr(container, attribute)):
        if isinstance(adapter, CRMAAdapter):
            adapter.release()


@cache
def _class_with_crma(block_class: type[nn.Module]) -> type[nn.Module]:
    class BlockWithCRMA(block_class):  # type: ignore[valid-type,misc]
        crma_attached_to = block_class

        def __reduce__(self) -> tuple[Any, ...]:  # no module holds this class, so a pickle has to make it anew
            return _empty_block, (block_class,), self.__getstate__()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output: Tensor | tuple[Any, ...] = super().forward(*args, **kwargs)
            if isinstance(output, tuple):
                return (self.crma(output[0]), *output[1:])
            return self.crma(output)

    # accelerate and FSDP find blocks by the name of their class
    BlockWithCRMA.__name__, BlockWithCRMA.__qualname__ = block_class.__name__, block_class.__qualname__
    return BlockWithCRMA


def _empty_block(block_class: Any) -> Any:
    made: Any = _class_with_crma(block_class)
    return made.__new__(made)


def _change_class(block: Any, to: type[nn.Module]) -> None:
    """Also in the bound methods that accelerate keeps on a module whose inputs it moves between devices."""
    for name in ("forward", "_old_forward"):
        if isinstance(vars(block).get(name), MethodType):
            setattr(block, name, MethodType(to.forward, block))
    block.__class__ = to


def _refuse_replaced_forwards(base: nn.Module, decoder: Decoder) -> None:
    """A ``forward`` of the instance would win over that of the class, and the adapter would silently never run."""
    for name, block in zip(decoder.names, decoder.blocks, strict=True):
        own = vars(block).get("_old_forward", vars(block).get("forward"))
        if own is not None and not (isinstance(own, MethodType) and own.__func__ is type(block).forward):
            raise refusal(base, f"{name}.forward, which another library has replaced")


def _refuse_what_was_changed(base: nn.Module, name: str, block: nn.Module) -> None:
    """Detaching restores a block only if it is what attach_crma made of it. Raises: ModelError."""
    forward = vars(block).get("_old_forward", vars(block).get("forward"))  # the former is accelerate's
    whole = isinstance(getattr(block, "crma", None), CRMAAdapter) and "crma_attached_to" in vars(type(block))
    if not whole or (forward is not None and not isinstance(forward, MethodType)):
        raise ModelError(
            type(base).__name__,
            got=f"{name}, a {type(block).__name__} that has changed since adapters were attached",
            allowed="the blocks as attach_crma left them",
            remedy="detach only once, and before a model is sharded or its blocks are wrapped",
        )


def _leave_out_of_checkpoints(base: Any, names: list[str], leave_out: bool) -> None:
    """Tell save_pretrained: the adapters have a file of their own.

    One key more than there are, since Trainer resumes without a word where just these keys are missing (CRMACallback).
    """
    if not hasattr(base, "_keys_to_ignore_on_save"):
        return
    ours = {f"{name}.crma.{parameter}" for name in names for parameter in PARAMETERS} | {"crma"}
    others = set(base._keys_to_ignore_on_save or ()) - ours
    base._keys_to_ignore_on_save = others | ours if leave_out else others
