"""What a session asks of an engine: the steps of one condition and seed, in one framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from backends.finetune.encoding import Batch, EncodedExample
from backends.finetune.protocol import Condition
from backends.finetune.protocol import Protocol as FinetuneProtocol
from backends.finetune.tasks import Example
from reference.errors import BackendError, MissingPackageError


class StepReport(NamedTuple):
    """One optimizer step: loss in nats per answer token, gradient norm per parameter group before clipping."""

    loss: float
    gradient_norms: dict[str, float]


class SpectralReport(NamedTuple):
    """The worst layer of each certificate; ``displacement_max`` is None while there is no anchor."""

    norm_max: float
    adapter_max: float
    adapter_min: float
    displacement_max: float | None


class Engine(Protocol):
    """One condition and seed. ``phase`` counts the tasks from 0."""

    def encode(self, examples: Sequence[Example], task: str) -> list[EncodedExample]:
        """Tokenize. Raises: TaskDataError."""
        ...

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        """Pad to one batch."""
        ...

    def begin_phase(self, phase: int, steps: int) -> None:
        """Make the phase's LoRA (a fresh one, or NAIVE's one) trainable, with a new optimizer."""
        ...

    def step(self, batch: Batch, index: int) -> StepReport:
        """One optimizer step. Raises: TrainingDivergedError before any parameter is changed."""
        ...

    def spectrum(self) -> SpectralReport | None:
        """Certificates of the shared CRMA as it is now; None without one."""
        ...

    def holdout_loss(self, phase: int, batches: Sequence[Batch]) -> float:
        """Mean loss in nats per answer token, with the LoRA of ``phase`` and the CRMA as it is now."""
        ...

    def save_phase(self, phase: int, lora: Path, crma: Path) -> None:
        """Write what the phase trained: the LoRA as a PEFT folder, the CRMA as a state file."""
        ...

    def restore_phase(self, phase: int, lora: Path, crma: Path) -> None:
        """Read what :meth:`save_phase` wrote, in the order of the phases."""
        ...

    def save_checkpoint(self, path: Path, progress: dict[str, Any]) -> None:
        """Write trainables, optimizer state and ``progress`` to one file, atomically."""
        ...

    def load_checkpoint(self, path: Path, phase: int) -> dict[str, Any] | None:
        """Restore a checkpoint of ``phase`` and return its progress; None, changing nothing, if there is none of it.

        Raises: RunFolderError for a damaged file."""
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Trainable values: {"lora": ..., "crma": ...}."""
        ...


EngineFactory = Callable[[Path, FinetuneProtocol, Condition, int], Engine]


def engine_factory(backend: str, mesh: str | None = None) -> EngineFactory:
    """The engine of a backend; ``mesh``, for JAX only, spreads it over several devices ("4x2").

    Raises: BackendError for a backend that cannot train; as :func:`backends.finetune.jax_placement.placement`.
    """
    if backend in ("jax-cpu", "jax-cuda"):
        try:
            from backends.finetune.jax_engine import JaxEngine
            from backends.finetune.jax_placement import keep_what_is_compiled, placement
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"backend {backend}",
                got=f"no package named {error.name}",
                allowed="an installation with the extras 'finetune' and 'jax'",
                remedy="pip install 'crma[finetune,jax]'",
            ) from error
        keep_what_is_compiled()
        place = placement(backend, mesh)
        return lambda model, protocol, condition, seed: JaxEngine(model, protocol, condition, seed, place)
    if backend not in ("torch-cpu", "torch-cuda"):
        raise BackendError(
            "backend",
            got=repr(backend),
            allowed="torch-cpu, torch-cuda, jax-cpu or jax-cuda for fine-tuning",
            remedy="choose one of these; the others compute the adapter only",
        )
    if mesh is not None:
        raise BackendError(
            "--mesh",
            got=f"{mesh!r} with {backend}",
            allowed="jax-cpu or jax-cuda",
            remedy="leave it out, or add --backend jax-cuda",
        )
    from backends.finetune.torch_engine import TorchEngine

    device = backend.removeprefix("torch-")
    return lambda model, protocol, condition, seed: TorchEngine(model, protocol, condition, seed, device)
