"""CRMAAdapter: one layer, x in and y out, with float32 structural parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backends.torch.residual_mixing import adapter_strength, residual_mixing
from backends.torch.sinkhorn_projection import sinkhorn_projection
from reference.adapter import AdapterConfig, AdapterParameters
from reference.errors import ShapeError
from reference.initialization import init_parameters


class CRMAAdapter(nn.Module):
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)`` with ``||y|| <= ||x||``, for one layer.

    Args:
        hidden_size: d. streams: n. rank: r, with ``streams * rank <= hidden_size``. iterations: K.
        seed: of the start values (random orthonormal basis); ignored if ``parameters`` are given.
        parameters: start values, from :func:`reference.init_parameters`.

    Parameters (float32, and kept so by ``.to(torch.bfloat16)`` and ``.half()``):
        mix_logits (n, n); gate_logit (1,), since FSDP2 refuses parameters without axes; basis (n, r, d).

    x has shape (..., d) and any floating dtype; y has x's shape and dtype.

    Raises: ConfigError, ShapeError. Clauses: MIX-1..MIX-10, INIT-1..INIT-4. Source: ours; paper sections 3.1-3.4.
    """

    mix_logits: nn.Parameter
    gate_logit: nn.Parameter
    basis: nn.Parameter

    def __init__(
        self,
        hidden_size: int,
        streams: int = 4,
        rank: int = 4,
        iterations: int = 20,
        *,
        seed: int = 0,
        parameters: AdapterParameters | None = None,
    ) -> None:
        super().__init__()
        self.config = AdapterConfig(hidden_size, streams, rank, iterations)
        start = init_parameters(self.config, seed) if parameters is None else parameters
        self.mix_logits = nn.Parameter(torch.tensor(start.mix_logits, dtype=torch.float32))
        self.gate_logit = nn.Parameter(torch.tensor(start.gate_logit, dtype=torch.float32).reshape(1))
        self.basis = nn.Parameter(torch.tensor(start.basis, dtype=torch.float32))
        if self.basis.shape != (streams, rank, hidden_size) or self.mix_logits.shape != (streams, streams):
            raise ShapeError(
                "parameters",
                got=f"mix_logits {tuple(self.mix_logits.shape)}, basis {tuple(self.basis.shape)}",
                allowed=f"({streams}, {streams}) and ({streams}, {rank}, {hidden_size})",
                remedy="draw them with init_parameters and the same sizes",
            )
        self.enabled = True
        self._prepared: tuple[Tensor, Tensor, tuple[int, ...]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        if not self.enabled:
            return x
        if x.shape[-1:] != (self.config.hidden_size,):
            raise ShapeError(
                "x",
                got=tuple(x.shape),
                allowed=f"(..., {self.config.hidden_size})",
                remedy="build the adapter with the model's hidden_size",
            )
        mixing, strength = self._mixing_and_strength()
        return residual_mixing(x, mixing, strength, self.basis)

    def prepare(self, mixing: Tensor, strength: Tensor) -> None:
        """Take M and alpha from a projection that a backbone made for all its layers at once.

        They serve until a parameter changes, so that a checkpointed block finds the same tensors when it recomputes.
        """
        self._prepared = (mixing, strength, self._versions())

    def _mixing_and_strength(self) -> tuple[Tensor, Tensor]:
        # A compiled graph computes them itself: versions of parameters cannot be read while it is traced.
        if self._prepared is not None and not torch.compiler.is_compiling() and self._prepared[2] == self._versions():
            mixing, strength, _ = self._prepared
            # What was prepared without a graph must not cut the parameters off from their gradients.
            if strength.requires_grad or not (torch.is_grad_enabled() and self.gate_logit.requires_grad):
                return mixing, strength
        return (
            sinkhorn_projection(self.mix_logits, self.config.iterations),
            adapter_strength(self.gate_logit, self.basis),
        )

    def _versions(self) -> tuple[int, ...]:
        return tuple(parameter._version for parameter in (self.mix_logits, self.gate_logit, self.basis))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CRMAAdapter:
        # A model that moves to half precision takes its adapters along to the device, not to the precision.
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            lost = moved.is_floating_point() and moved.dtype.itemsize < tensor.dtype.itemsize
            return tensor.to(moved.device) if lost else moved

        self._prepared = None
        applied: CRMAAdapter = super()._apply(keep_precision, recurse)
        return applied

    def __getstate__(self) -> dict[str, Any]:
        # A copied adapter must not share the original's prepared tensors, which belong to its autograd graph.
        return {**self.__dict__, "_prepared": None}

    def extra_repr(self) -> str:
        c = self.config
        return f"hidden_size={c.hidden_size}, streams={c.streams}, rank={c.rank}, iterations={c.iterations}"
