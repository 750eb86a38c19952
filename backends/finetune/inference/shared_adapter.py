"""The CRMA that all tasks share, on a model that answers: loaded from its file, switched on and off."""

from pathlib import Path
from typing import Any

from backends.finetune.engines.torch.unconstrained import load_unconstrained, unconstrain
from backends.torch import AdapterState, CRMAAdapter, CRMABackbone, attach_crma, load_state
from reference import AdapterConfig


class SharedAdapter:
    """A backbone and the file that its state is of."""

    def __init__(self, backbone: CRMABackbone, file: Path, *, constrained: bool) -> None:
        self.backbone, self.constrained = backbone, constrained
        self.set(self.read(file), file)
        self.backbone.requires_grad_(False)

    def set(self, state: AdapterState, file: Path) -> None:
        """Take over ``state``, which was read from ``file``. Raises: StateFileError; then nothing is changed."""
        self.backbone.load_state(state)
        self.file = file

    def read(self, file: Path) -> AdapterState:
        """The state of a file of this model. Raises: StateFileError, RunFolderError."""
        return self.backbone.read(file) if self.constrained else load_unconstrained(file)

    def switch(self, *, on: bool) -> None:
        """Let the adapters compute, or bypass them."""
        for adapter in self.backbone.adapters:
            assert isinstance(adapter, CRMAAdapter)
            adapter.enabled = on


def attach_shared(model: Any, file: Path, *, constrained: bool = True) -> SharedAdapter:
    """Attach a CRMA of the sizes that ``file`` says, with its state.

    ``constrained=False``: a file of the condition modular-unconstrained, which is no CRMA.

    Raises: StateFileError, RunFolderError (an unconstrained one), ModelError.
    """
    if constrained:
        backbone = attach_crma(model, load_state(file).config)
    else:
        _, streams, rank, hidden_size = load_unconstrained(file).bases.shape
        backbone = attach_crma(model, AdapterConfig(hidden_size, streams, rank))
        unconstrain(backbone)
    return SharedAdapter(backbone, file, constrained=constrained)
