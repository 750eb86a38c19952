"""CRMACallback: the adapters in the checkpoints of transformers.Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from backends.torch.backbone import CRMABackbone
from backends.torch.state import save_state

STATE_FILE = "crma.safetensors"


class CRMACallback(TrainerCallback):
    """``Trainer(..., callbacks=[CRMACallback(backbone)])``: write adapters into each checkpoint, and resume from them.

    Without it Trainer saves the base model or PEFT's adapters alone, and a resumed run starts with new CRMA adapters.

    Args:
        backbone: of ``attach_crma``.
        resume_from: the checkpoint folder that ``trainer.train(resume_from_checkpoint=...)`` is given, if it is not in
            ``output_dir``.

    Raises: StateFileError where training resumes and the checkpoint has no adapters, or another model's.
    Clauses: STATE-1, STATE-3, STATE-4. Source: ours.
    """

    def __init__(self, backbone: CRMABackbone, resume_from: Path | str | None = None) -> None:
        self.backbone, self.resume_from = backbone, resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            folder = _folder(args, state) if self.resume_from is None else Path(self.resume_from)
            self.backbone.load(folder / STATE_FILE)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        parameters = self.backbone.finite_state()  # every process takes part: what is sharded is gathered
        if state.is_world_process_zero:
            b = self.backbone
            save_state(_folder(args, state) / STATE_FILE, parameters, b.config, b.base_model, b.base_model_sha256)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
