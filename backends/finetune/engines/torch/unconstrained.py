"""A control: CRMA whose mixing matrix is a free parameter, so without the bound that CRMA exists for.

It starts from the doubly stochastic matrices that CRMA would start from; everything else is CRMA's. Its files have a
format of their own, since a CRMA state file of these values would be read as logits. Clause: CL-5.
"""

from pathlib import Path

import torch
from torch import Tensor

from backends.certificate import Certificate
from backends.finetune.engines.torch.checkpoint import read_tensors, write_tensors
from backends.finetune.runs.checkpoint_file import damaged_phase
from backends.torch import AdapterState, CRMAAdapter, CRMABackbone
from backends.torch.certificates import certificate_of
from backends.torch.functions import functions
from backends.torch.prepared import Prepared
from backends.torch.residual_mixing import adapter_strength


class UnconstrainedAdapter(CRMAAdapter):
    """``mix_logits`` is M itself."""

    def forward(self, x: Tensor) -> Tensor:
        if self.bypassed(remembered=True):
            return x
        strength = adapter_strength(self.gate_logit, self.basis)
        return functions(self.kernels, x.device.type).residual_mixing(x, self.mix_logits, strength, self.basis)

    def prepare(self, prepared: Prepared) -> None:
        return None  # the projection is what this control leaves out


def unconstrain(backbone: CRMABackbone) -> None:
    """Replace every adapter's logits by the matrix that they project to, and leave out the projection."""
    for adapter in backbone.adapters:
        assert isinstance(adapter, CRMAAdapter)
        project = functions(adapter.kernels, adapter.basis.device.type).sinkhorn_projection
        with torch.no_grad():
            adapter.mix_logits.copy_(project(adapter.mix_logits, adapter.config.iterations))
        adapter._start["mix_logits"] = adapter.mix_logits.detach().cpu().numpy().copy()
        adapter.__class__ = UnconstrainedAdapter


def certificate_of_unconstrained(backbone: CRMABackbone) -> Certificate:
    """What CRMA's certificate measures, on the free matrices. Raises: NonFiniteError."""
    state = backbone.finite_state()
    return certificate_of(state.mix_logits.double(), state)


def save_unconstrained(path: Path, state: AdapterState) -> None:
    """Write the matrices, gates and bases, atomically."""
    tensors = {"mixing": state.mix_logits, "gate_logits": state.gate_logits, "bases": state.bases}
    write_tensors(path, tensors, {"format": "crma-unconstrained"})


def load_unconstrained(path: Path) -> AdapterState:
    """Read what :func:`save_unconstrained` wrote. Raises: RunFolderError."""
    tensors = read_tensors(path, "cpu")
    try:
        return AdapterState(tensors["mixing"], tensors["gate_logits"], tensors["bases"])
    except KeyError as error:
        raise damaged_phase(path, f"no tensor {error}") from error
