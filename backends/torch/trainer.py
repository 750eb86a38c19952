"""CRMACallback: the adapters in all that transformers.Trainer trains, saves, pushes and loads."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from backends.atomic import atomic_write
from backends.state_file import read_state
from backends.torch.attach import attached_backbone
from backends.torch.backbone import CRMABackbone
from backends.torch.save_pretrained import STATE_FILE, encoded_state, save_with_adapters, sharded
from reference.errors import ConfigError, ModelError, StateFileError

GROUPS = ("basis", "mixing", "gate")


class CRMACallback(TrainerCallback, ExportableState):
    """``Trainer(..., callbacks=[CRMACallback(backbone)])``, and the same for TRL's trainers.

    Without it Trainer saves the base model or PEFT's adapters alone, and a resumed run starts with new CRMA adapters.
    With it every folder that the model is saved to holds them as ``crma.safetensors``: checkpoints, ``save_model``,
    ``push_to_hub`` and ``model.save_pretrained``. A resumed run goes on with those of its checkpoint, and
    ``load_best_model_at_end`` brings back those of the best one. trainer_state.json keeps the checksum of the file.

    Attach CRMA after ``get_peft_model``, or call ``backbone.requires_grad_(True)`` between it (or the construction of
    SFTTrainer with a ``peft_config``) and ``trainer.train()``: PEFT freezes what it finds.

    Args:
        backbone: of ``attach_crma``; by default the one that the model carries when training begins.
        resume_from: the folder that ``trainer.train(resume_from_checkpoint=...)`` is given, if it is neither in
            ``output_dir`` nor said in ``TrainingArguments(resume_from_checkpoint=...)``.
        trained: which groups of parameters are to train; () for adapters that are frozen on purpose.

    Raises: ModelError when training begins where the adapters would not train as ``trained`` says, or are not those of
    the model; StateFileError where a checkpoint that is loaded has no adapters, another model's or other ones than were
    saved with it; NonFiniteError for NaN or infinity at the time of saving.
    Clauses: STATE-1, STATE-3, STATE-4.
    """

    def __init__(
        self,
        backbone: CRMABackbone | None = None,
        resume_from: Path | str | None = None,
        trained: Collection[str] = GROUPS,
    ) -> None:
        if unknown := set(trained) - set(GROUPS):
            raise ConfigError("trained", got=sorted(unknown), allowed=", ".join(GROUPS), remedy="leave it out")
        self.backbone, self.resume_from, self.trained = backbone, resume_from, tuple(trained)
        self._saw_gradients = False

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps: the checksum of the file that is written beside it. Runs in one process."""
        digest = None
        if self.backbone is not None and not sharded(self.backbone):
            digest = _checksum(encoded_state(self.backbone, self.backbone.state()))
        return {"args": {"trained": list(self.trained)}, "attributes": {"sha256": digest}}

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if model is not None:
            save_with_adapters(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        self._saw_gradients = False
        if model is not None:
            self._refuse_another_model(model)
            save_with_adapters(model)
        assert self.backbone is not None
        refuse_untrained(self.backbone, self.trained, optimizer)
        stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self._resume(args, state, _digest(stored))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._saw_gradients or self.backbone is None:
            return
        for name in self.trained:
            if all(parameter.grad is None for parameter in self.backbone.parameter_groups()[name]):
                raise _untrained(
                    f"{name!r} without a gradient after the first backward pass",
                    "with gradient checkpointing on a frozen model use use_reentrant=False, or call "
                    "model.enable_input_require_grads()",
                )
        self._saw_gradients = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Saving the model has written them already, unless each process saves its shards, or transformers did not
        # make the model. A search of hyperparameters has other folders, which it saves the model to.
        if self.backbone is None or not (sharded(self.backbone) or state.is_world_process_zero):
            return
        parameters = self.backbone.finite_state()  # every process takes part where they are sharded
        folder = _folder(args, state)
        if state.is_world_process_zero and folder.is_dir():
            atomic_write(folder / STATE_FILE, encoded_state(self.backbone, parameters))

    def on_push_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Trainer copies the files it knows from the last checkpoint to the folder that it uploads.
        last = _folder(args, state) / STATE_FILE
        if state.is_world_process_zero and last.is_file():
            atomic_write(Path(args.output_dir) / STATE_FILE, read_state(last))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            folder = Path(state.best_model_checkpoint)
            try:
                best: Any = TrainerState.load_from_json(str(folder / "trainer_state.json"))
            except (OSError, ValueError, TypeError) as error:
                raise _refused(folder / "trainer_state.json", f"{type(error).__name__}: {error}") from error
            self._load(folder / STATE_FILE, _digest(best.stateful_callbacks.get(type(self).__name__)))

    def _refuse_another_model(self, model: Any) -> None:
        found = attached_backbone(model)
        own = found if self.backbone is None else self.backbone
        if [id(adapter) for adapter in own.adapters] != [id(adapter) for adapter in found.adapters]:
            raise ModelError(
                "backbone of CRMACallback",
                got="adapters that are in another model than the one to train",
                allowed="the backbone that attach_crma returned for this model, or None",
                remedy="give CRMACallback() no backbone, and it takes that of the model",
            )
        self.backbone = own

    def _resume(self, args: Any, state: Any, digest: str | None) -> None:
        if self.resume_from is not None:
            self._load(Path(self.resume_from) / STATE_FILE, digest)
            return
        file = _folder(args, state) / STATE_FILE
        elsewhere = getattr(args, "resume_from_checkpoint", None)
        if isinstance(elsewhere, str) and (Path(elsewhere) / STATE_FILE).is_file():
            file = Path(elsewhere) / STATE_FILE
        if digest is None:  # nothing tells whether output_dir holds the checkpoint that Trainer has loaded
            raise _refused(file, "a trainer_state.json that does not say which adapters it belongs to")
        self._load(file, digest)

    def _load(self, file: Path, digest: str | None) -> None:
        assert self.backbone is not None
        if not file.is_file():
            raise _refused(file, "no such file")
        if digest is not None and _checksum(read_state(file)) != digest:
            raise _refused(file, "other adapters than were saved with the checkpoint, or damaged ones")
        self.backbone.load(file)


def refuse_untrained(backbone: CRMABackbone, trained: Collection[str], optimizer: Any) -> None:
    """Raises: ModelError where a group of ``trained`` would not train, or another would."""
    if not all(adapter.enabled for adapter in backbone.adapters):
        raise _untrained("adapters that are bypassed", "train outside of `with backbone.disabled()`")
    groups = [] if optimizer is None else optimizer.param_groups
    learned = {
        id(parameter) for group in groups if group.get("initial_lr", group["lr"]) != 0 for parameter in group["params"]
    }
    for name, parameters in backbone.parameter_groups().items():
        free = [parameter for parameter in parameters if parameter.requires_grad]
        if name not in trained:
            if free:
                raise _untrained(f"{name!r} that requires gradients", f"leave trained out, or freeze {name!r}")
        elif len(free) < len(parameters):
            raise _untrained(
                f"{name!r} frozen in {len(parameters) - len(free)} of {len(parameters)} layers",
                "call backbone.requires_grad_(True) after get_peft_model, or after the trainer has made the PEFT model "
                "(SFTTrainer with peft_config); with trained=() CRMACallback takes adapters that are frozen on purpose",
            )
        elif optimizer is not None and not all(id(parameter) in learned for parameter in parameters):
            raise _untrained(
                f"{name!r} that the optimizer does not hold, or with a learning rate of 0",
                "let Trainer make the optimizer, or give it all of backbone.parameters()",
            )


def _untrained(got: str, remedy: str) -> ModelError:
    allowed = "adapters that train as CRMACallback(trained=...) says, by default all of them"
    return ModelError("CRMA adapters", got=got, allowed=allowed, remedy=remedy)


def _refused(file: Path, got: str) -> StateFileError:
    return StateFileError(
        str(file),
        got=got,
        allowed="the adapters that CRMACallback saved with the checkpoint",
        remedy="give CRMACallback(backbone, resume_from=...) the folder that train(resume_from_checkpoint=...) is "
        "given, or take an earlier checkpoint",
    )


def _digest(stored: Any) -> str | None:
    """The checksum in what trainer_state.json says of the callback; None where it says none."""
    attributes = stored.get("attributes") if isinstance(stored, dict) else None
    digest = attributes.get("sha256") if isinstance(attributes, dict) else None
    return digest if isinstance(digest, str) else None


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
