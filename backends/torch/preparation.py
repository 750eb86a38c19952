"""M, alpha and C of all adapters of a model, by one batched call for each forward pass."""

from collections.abc import Iterable, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from backends.torch.adapter import CRMAAdapter
from backends.torch.certificates import AdapterState
from backends.torch.functions import functions
from backends.torch.prepared import Prepared, Promise
from backends.torch.residual_mixing import adapter_strength, mixed_basis


def prepare_adapters(adapters: Sequence[CRMAAdapter]) -> None:
    """Project all layers' logits in one batched call, and hand each adapter its M and alpha, and its C for inference.

    A model over several devices takes one call for each. Parameters that FSDP shards are left alone: each adapter
    projects its own when they are gathered, since only then do its gradients reach FSDP.

    Clauses: SINK-1, MIX-5.
    """
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and all(one.is_held() for one in adapters):
        return
    ready = [adapter for adapter in adapters if not adapter.bypassed() and not adapter._is_fsdp_managed_module]
    for device in dict.fromkeys([adapter.basis.device for adapter in ready]):
        _prepare_together([adapter for adapter in ready if adapter.basis.device == device])


def _prepare_together(adapters: Sequence[CRMAAdapter]) -> None:
    for adapter in adapters:
        adapter.refuse_changed_parameters()
    state = stacked(adapters)
    project = functions(adapters[0].kernels, state.mix_logits.device.type).sinkhorn_projection
    mixing = project(state.mix_logits, adapters[0].config.iterations)
    strength = adapter_strength(state.gate_logits, state.bases)
    grad, compiling = torch.is_grad_enabled(), torch.compiler.is_compiling()
    mixed: Iterable[tuple[Tensor, Tensor] | None] = [None] * len(adapters)
    if not grad:
        c = mixed_basis(mixing, strength, state.bases)
        mixed = zip(state.bases.flatten(1, 2).unbind(), c.flatten(1, 2).unbind(), strict=True)
    thread = get_ident() if grad and not compiling else None
    layers = zip(adapters, mixing.unbind(), strength.unbind(), mixed, strict=True)
    for layer, (adapter, m, alpha, mixed_one) in enumerate(layers):
        adapter.prepare(Prepared(m, alpha, mixed_one, state, layer, with_graph=grad, traced=compiling, thread=thread))


def promise_of(adapter: CRMAAdapter) -> Promise | None:
    """Of the parameters as they are now; None where FSDP shards them, or they are not in memory."""
    if adapter._is_fsdp_managed_module or any(one.is_meta or one.is_inference() for one in adapter.parameters()):
        return None
    return Promise(adapter._parameters)


def stacked(adapters: Sequence[CRMAAdapter]) -> AdapterState:
    """A copy of all parameters, on the first adapter's device."""
    device = adapters[0].basis.device
    return AdapterState(
        torch.stack([_whole(adapter.mix_logits).to(device) for adapter in adapters]),
        torch.cat([_whole(adapter.gate_logit).to(device) for adapter in adapters]),
        torch.stack([_whole(adapter.basis).to(device) for adapter in adapters]),
    )


def is_sharded(parameter: Any) -> bool:
    """Whether FSDP2 has spread the parameter over processes, so that reading it whole takes all of them."""
    return hasattr(parameter, "full_tensor")


def _whole(parameter: Any) -> Tensor:
    whole: Tensor = parameter.full_tensor() if is_sharded(parameter) else parameter
    return whole
