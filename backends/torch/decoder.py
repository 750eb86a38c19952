"""Find the decoder blocks of a causal language model by what they do in a forward pass, not by the names of classes.

Two forward passes of four tokens, without gradients and without dropout, show which nn.ModuleList carries the residual
stream, and that no token is seen by an earlier one.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reference.errors import ModelError

TOKENS = 4
BY_HAND = (
    "attach before the model is wrapped or sharded; for another kind of model put a CRMAAdapter behind each block by "
    "hand, x = adapter(block(x)), and hold the adapters in a CRMABackbone"
)


class Decoder(NamedTuple):
    """The blocks in the order of the residual stream: ``getattr(container, attribute)``, an nn.ModuleList."""

    container: nn.Module
    attribute: str
    names: list[str]  # of the blocks, as in model.named_modules()
    hidden_size: int
    devices: list[torch.device]  # of each block's output

    @property
    def blocks(self) -> list[nn.Module]:
        return list(getattr(self.container, self.attribute))


class Call(NamedTuple):
    """Of a module: its first argument, or its ``hidden_states``, and its result."""

    module: nn.Module
    given: Any
    result: Any


def base_model(model: Any) -> Any:
    """The model that a PeftModel or torch.compile wraps, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """The configuration of the language model, also of one with other modalities; None where there is none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_decoder(model: nn.Module) -> Decoder:
    """The one list of same-typed blocks that are called in order, each mapping (1, tokens, d) to that shape.

    A block may return a tensor or a tuple that begins with it. Raises: ModelError, which says what was found instead.
    """
    _refuse_by_configuration(model)
    lists = {name: module for name, module in model.named_modules() if _same_typed(module)}
    with ExitStack() as hooks:
        calls = {name: hooks.enter_context(calls_of(blocks)) for name, blocks in lists.items()}
        run_probe(model)
        found = [name for name in lists if _is_residual_stream(calls[name], lists[name])]
        found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        if len(found) != 1:
            seen = ", ".join(f"{name} ({len(lists[name])} {type(lists[name][0]).__name__})" for name in found or lists)
            raise refusal(model, f"{len(found)} lists of such blocks; looked at {seen or 'no nn.ModuleList'}")
        (name,) = found
        first_run = list(calls[name])
        calls[name].clear()
        run_probe(model, last_token=True)
        _refuse_if_not_causal(model, first_run[-1], calls[name][-1])
    container, _, attribute = name.rpartition(".")
    outputs = [stream_of(call.result) for call in first_run]
    names = [f"{name}.{index}" for index in range(len(outputs))]
    devices = [output.device for output in outputs]
    return Decoder(model.get_submodule(container), attribute, names, outputs[0].shape[-1], devices)


def run_probe(model: Any, *, last_token: bool = False) -> None:
    """One forward pass of four tokens; ``last_token`` draws another last one. Raises: ModelError."""
    vocabulary = text_config(model).vocab_size
    ids = [vocabulary // divisor for divisor in (2, 3, 4, 7 if last_token else 5)]
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    try:
        with torch.no_grad(), _evaluating(model):
            model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    except Exception as error:
        raise refusal(model, f"{type(error).__name__} in a forward pass of {TOKENS} tokens: {error}") from error


@contextmanager
def calls_of(modules: Iterable[nn.Module], *, copied: bool = False) -> Iterator[list[Call]]:
    """The calls of ``modules`` within the block, in their order; with copies of tensors if ``copied``."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        values = (args[0] if args else kwargs.get("hidden_states"), output)
        calls.append(Call(module, *(v.clone() if copied and isinstance(v, Tensor) else v for v in values)))

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def stream_of(output: Any) -> Any:
    """The residual stream in what a block returns."""
    return output[0] if isinstance(output, tuple) and output else output


def refusal(model: Any, got: str, remedy: str = BY_HAND) -> ModelError:
    """The one error for a model that cannot carry the adapters."""
    return ModelError(
        "model",
        got=f"{type(model).__name__}: {got}",
        allowed="a causal language model with attention whose decoder blocks are one nn.ModuleList of one class, "
        "called in order, each mapping the residual stream (batch, tokens, hidden) to the same shape",
        remedy=remedy,
    )


def _refuse_by_configuration(model: Any) -> None:
    config = text_config(model)
    if config is None or not isinstance(getattr(config, "vocab_size", None), int):
        raise refusal(model, "no configuration of a language model (model.config.vocab_size)")
    if getattr(model.config, "is_encoder_decoder", False):
        raise refusal(model, "an encoder and a decoder, so that it is not clear which of them to adapt")
    if not getattr(config, "num_attention_heads", None):
        raise refusal(model, "no attention heads in its configuration (a state-space or recurrent model?)")
    if getattr(config, "attn_logit_softcapping", None) and getattr(config, "_attn_implementation", None) == "sdpa":
        # transformers 5.17 takes this by default for Gemma-2, and drops the soft cap without a word.
        remedy = "load the model with attn_implementation='eager'"
        raise refusal(model, "attention 'sdpa', which leaves out the model's soft cap", remedy)
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        raise refusal(model, "parameters that are sharded already")
    if all(parameter.is_meta for parameter in model.parameters()) and not hasattr(model, "_hf_hook"):  # offloaded
        raise refusal(model, "weights on the meta device, which hold no values")


def _same_typed(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1


def _is_residual_stream(calls: list[Call], blocks: Any) -> bool:
    if [call.module for call in calls] != list(blocks):
        return False
    for call in calls:
        given, result = call.given, stream_of(call.result)
        if not (isinstance(given, Tensor) and isinstance(result, Tensor) and given.is_floating_point()):
            return False
        if given.shape != result.shape or given.ndim != 3 or given.shape[:2] != (1, TOKENS):
            return False
    return all(_same(stream_of(one.result), other.given) for one, other in pairwise(calls))


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one.cpu(), other.cpu())  # accelerate may move it to another device in between


def _refuse_if_not_causal(model: nn.Module, first: Call, second: Call) -> None:
    one, other = stream_of(first.result), stream_of(second.result)
    earlier, largest = slice(0, TOKENS - 1), one.float().abs().max()
    # Exactly equal in most models; experts that get other batches may round differently.
    noise = 8 * torch.finfo(one.dtype).eps * largest
    if not bool((one[:, earlier].float() - other[:, earlier].float()).abs().max() <= noise):
        raise refusal(model, "tokens that are seen by earlier ones (an encoder?), or values that are not finite")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        # A 4-bit layer of bitsandbytes on a CPU would pack its weights for inference, for good, and lose its gradient.
        module.training = hasattr(module, "support_avx512bf16_for_cpu")
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
