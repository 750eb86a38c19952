"""CRMAAdapter: one layer, x in and y out, with float32 structural parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.torch.bypass import Block, Remembered, hold_here, recalled, remember
from backends.torch.checks import require_floats
from backends.torch.functions import Kernels, checked_kernels, functions
from backends.torch.prepared import Prepared, Promise
from backends.torch.residual_mixing import adapter_strength, add_mixed, add_mixed_by_sums, residual_mixing
from reference.adapter import AdapterConfig, AdapterParameters
from reference.errors import ModelError, ShapeError
from reference.initialization import init_parameters

PARAMETERS = ("mix_logits", "gate_logit", "basis")

#: Up to so many entries of the streams are summed without a kernel in inference: one tile leaves most of a GPU idle.
FEW_ENTRIES = 256

_PRECISIONS = (torch.float32, torch.float64)


class CRMAAdapter(nn.Module):
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)`` with ``||y|| <= ||x||``, for one layer.

    Args:
        hidden_size: d. streams: n. rank: r, with ``streams * rank <= hidden_size``. iterations: K.
        seed: of the start values (random orthonormal basis); ignored if ``parameters`` are given.
        parameters: start values, from :func:`reference.init_parameters`.
        kernels: "triton", "torch" (plain PyTorch), or "auto": Triton for x on a CUDA device, plain PyTorch elsewhere.
            There is no fallback. The kernels take n <= 64 and n r <= 512, and on the CPU TRITON_INTERPRET=1.

    Parameters (float32, and kept so by ``.to(torch.bfloat16)``, ``.half()`` and ``load_state_dict(assign=True)``):
        mix_logits (n, n); gate_logit (1,), since FSDP2 refuses parameters without axes; basis (n, r, d).

    x has shape (..., d) and any floating dtype of 16 bits or more; y has x's shape and dtype. For the backward pass y
    is kept where it is float32 (what follows keeps it anyway), so there it must not be changed in place.

    Raises: ConfigError, DtypeError, ShapeError, MissingPackageError; ModelError where something else replaced the
    parameters, or took their precision; BackendError where they changed between a forward pass and its recomputation by
    a checkpoint. Clauses: MIX-1..MIX-10, INIT-1..INIT-4.
    Source: ours; paper sections 3.1-3.4.
    """

    mix_logits: nn.Parameter
    gate_logit: nn.Parameter
    basis: nn.Parameter
    _is_fsdp_managed_module = False  # FSDP sets it

    def __init__(
        self,
        hidden_size: int,
        streams: int = 4,
        rank: int = 4,
        iterations: int = 20,
        *,
        seed: int = 0,
        parameters: AdapterParameters | None = None,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        self.kernels: Kernels = checked_kernels(kernels)
        self.config = AdapterConfig(hidden_size, streams, rank, iterations)
        start = init_parameters(self.config, seed) if parameters is None else parameters
        self._start = {name: np.array(value, np.float32) for name, value in zip(PARAMETERS, start, strict=True)}
        self._shapes = dict(zip(PARAMETERS, [(streams, streams), (1,), (streams, rank, hidden_size)], strict=True))
        mix_logits, basis = self._start["mix_logits"], self._start["basis"]
        if basis.shape != self._shapes["basis"] or mix_logits.shape != self._shapes["mix_logits"]:
            raise ShapeError(
                "parameters",
                got=f"mix_logits {mix_logits.shape}, basis {basis.shape}",
                allowed=f"({streams}, {streams}) and ({streams}, {rank}, {hidden_size})",
                remedy="draw them with init_parameters and the same sizes",
            )
        with torch.inference_mode(False):  # what is made in that mode can never be trained
            for name, shape in self._shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))
        self.reset_parameters()
        self.enabled = self.meant_to_train = True
        functions(self.kernels, self.basis.device.type)  # a missing package is told here rather than in the first step
        self.blocks: frozenset[Block] = frozenset()  # of CRMABackbone.disabled(), entered anywhere and not ended
        self._prepared: Prepared | None = None
        self.promise: Promise | None = None  # of CRMABackbone.prepare(), inside its block
        self._recomputed: Prepared | None = None  # of the last forward pass with a graph

    def requires_grad_(self, requires_grad: bool = True) -> CRMAAdapter:
        """Train the adapter, or freeze it on purpose: of one that another library froze, the model warns."""
        self.meant_to_train = requires_grad
        return super().requires_grad_(requires_grad)

    def reset_parameters(self) -> None:
        """Set the start values once more, in place: after ``to_empty``, for a model that was built on the meta device.

        FSDP2 may have sharded the parameters meanwhile. Clauses: INIT-1..INIT-4.
        """
        with torch.no_grad():
            for name, shape in self._shapes.items():
                assign(getattr(self, name), torch.from_numpy(self._start[name]).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        prepared = self._serving()
        if self.bypassed(remembered=prepared is None or prepared.with_graph, prepared=prepared):
            return x
        require_floats(x=x)
        if x.shape[-1:] != (self.config.hidden_size,):
            raise ShapeError(
                "x",
                got=tuple(x.shape),
                allowed=f"(..., {self.config.hidden_size})",
                remedy="build the adapter with the model's hidden_size",
            )
        chosen = functions(self.kernels, x.device.type)
        if prepared is None:
            self.refuse_changed_parameters()
            mixing = chosen.sinkhorn_projection(self.mix_logits, self.config.iterations)
            return chosen.residual_mixing(x, mixing, adapter_strength(self.gate_logit, self.basis), self.basis)
        is_plain = chosen.residual_mixing is residual_mixing
        mixed = prepared.mixed if x.dtype != torch.float64 or self.basis.dtype == x.dtype else None
        if mixed is not None and is_plain:
            return add_mixed(x, *mixed)
        if mixed is not None and x[..., 0].numel() * self.config.streams * self.config.rank <= FEW_ENTRIES:
            return add_mixed_by_sums(x, *mixed)
        return chosen.residual_mixing(x, prepared.mixing, prepared.strength, self.basis)

    def bypassed(self, *, remembered: bool = False, prepared: Prepared | None = None) -> bool:
        """Whether a call here and now returns x: not ``enabled``, or within ``CRMABackbone.disabled()``.

        What a reentrant checkpoint recomputes does what it did the first time; ``remembered`` lets it know.
        """
        before = recalled(self)
        bypassed = (not self.enabled or hold_here(self.blocks)) if before is None else before.bypassed
        if (remembered or bypassed) and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            remember(self, Remembered(bypassed, prepared))
        return bypassed

    def prepare(self, prepared: Prepared) -> None:
        """Take M and alpha, and for inference C, for one forward pass of the model."""
        self._prepared = prepared

    def release(self) -> None:
        """The end of the forward pass of the model, also by an error."""
        if self._prepared is not None and self._prepared.with_graph:
            self._recomputed = self._prepared.after_the_forward_pass()
        if not self.is_held():
            self._prepared = None

    def is_held(self) -> bool:
        """Whether what is prepared serves the forward passes to come, inside a block of ``CRMABackbone.prepare()``."""
        if self.promise is None or self._prepared is None or self._prepared.with_graph or self._prepared.traced:
            return False
        return self.promise.seems_kept(self._parameters)

    def _serving(self) -> Prepared | None:
        parameters = (self.mix_logits, self.gate_logit, self.basis)
        if self._prepared is not None:
            return self._prepared if self._prepared.serves(parameters) else None
        before = recalled(self)
        if before is not None:  # each block of a reentrant checkpoint runs backward by itself: it shares no graph
            if before.prepared is not None:
                before.prepared.require_unchanged(parameters)
            return None
        if self._recomputed is None:
            return None
        if self._recomputed.serves(parameters):
            return self._recomputed
        if torch.is_grad_enabled():
            self._recomputed = None  # a call by itself: what recomputes it must do the same
        return None

    def refuse_changed_parameters(self) -> None:
        """Raises: ModelError for a parameter that a cast of ``.data`` rounded, or that is another tensor's function
        (torch.nn.utils.parametrize, prune), or of another shape.
        """
        if torch.compiler.is_compiling() or is_replica(self):
            return
        for name, shape in self._shapes.items():
            parameter = self._parameters.get(name)
            if parameter is None or parameter.dtype not in _PRECISIONS or parameter.shape != shape:
                found = "no parameter" if parameter is None else f"{parameter.dtype} {tuple(parameter.shape)}"
                raise ModelError(
                    f"{name} of a CRMAAdapter",
                    got=found,
                    allowed=f"a parameter in float32 (or float64) of shape {shape}",
                    remedy="call float() on the adapter or the backbone after another library has cast it (TRL does so "
                    "to all trainable parameters of a quantized model); under FSDP2 shard_adapters comes first; take "
                    "parametrizations and pruning off",
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # With assign=True the values would become the parameters, in whatever precision they came.
        for name in PARAMETERS:
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype not in _PRECISIONS:
                state_dict = {**state_dict, prefix + name: value.detach().to(torch.float32)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CRMAAdapter:
        # A model that moves to half precision takes its adapters along to the device, not to the precision.
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            lost = tensor.is_floating_point() and moved.dtype not in _PRECISIONS
            return tensor.to(moved.device, torch.float32) if lost else moved

        self._prepared = self._recomputed = None
        applied: CRMAAdapter = super()._apply(keep_precision, recurse)
        functions(self.kernels, self.basis.device.type)
        return applied

    def __getstate__(self) -> dict[str, Any]:
        # A copied adapter must not share the original's prepared tensors, which belong to its autograd graph.
        return {**self.__dict__, "_prepared": None, "_recomputed": None, "promise": None, "blocks": frozenset()}

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica.enabled = not self.bypassed()  # which the replica's own thread could not tell
        return replica

    def extra_repr(self) -> str:
        c = self.config
        return f"hidden_size={c.hidden_size}, streams={c.streams}, rank={c.rank}, iterations={c.iterations}"


def is_replica(module: nn.Module) -> bool:
    """Whether nn.DataParallel made it for one forward pass: what it holds are then copies, and no parameters."""
    return "_is_replica" in vars(module)


def assign(parameter: Any, value: Tensor) -> None:
    """Set a parameter in place, also one that FSDP2 shards. Call it without gradients."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor  # only where torch is built with it

        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
