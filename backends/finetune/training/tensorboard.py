"""A run's scalars as TensorBoard event files, one folder per seed and condition."""

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.atomic import disk_space_errors
from backends.files import printable
from reference.errors import MissingPackageError


class Log:
    """What a session tells a log; this one keeps nothing. ``global_step`` counts the optimizer steps of a seed and
    condition from 1 on, through all phases."""

    def start(self, seed: int, condition: str, global_step: int) -> None:
        """What follows is of this seed and condition. Steps up to ``global_step`` are done and keep their points;
        later ones are about to be written (again)."""

    def step(self, global_step: int, loss: float, norms: Mapping[str, float], tokens_per_second: float) -> None:
        """After an optimizer step: loss in nats per answer token, gradient ``norms`` before clipping."""

    def spectrum(self, global_step: int, values: Mapping[str, float | None]) -> None:
        """Certificates over the layers; None is left out."""

    def holdout(self, phase: int, losses: Mapping[str, float]) -> None:
        """After phase ``phase``, from 0: the holdout loss of every task seen. Stands at the last step written."""

    def close(self) -> None:
        """Write what is waiting."""


class TensorBoardLog(Log):
    """Event files under ``folder/SEED-CONDITION``. A resumed run continues them without repeating or losing a point.

    Every point is handed to the system before its call returns, so a checkpoint never runs ahead of the log. On resume
    the points after the checkpoint are marked as superseded (TensorBoard calls it purging).

    Raises: MissingPackageError without the package tensorboard; DiskSpaceError.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "tensorboard",
                got=f"no package named {error.name or 'tensorboard'}",
                allowed="an installation with the extra 'tensorboard'",
                remedy="pip install 'crma[tensorboard]', or leave the log out",
            ) from error
        self.folder = Path(folder)
        self._open, self._owner = SummaryWriter, (-1, "")
        self._writer: SummaryWriter | None = None
        self._step, self._held = 0, frozenset[str]()

    def start(self, seed: int, condition: str, global_step: int) -> None:
        if self._writer is not None and (seed, condition, global_step) == (*self._owner, self._step):
            return  # the next phase of the same session
        self.close()
        place = self.folder / f"{seed}-{condition}"
        earlier = sorted(place.glob("events.*"))
        _await_next_second(earlier)
        # A phase that ended at this very step may have its holdout losses already, without being recorded yet.
        self._held = frozenset(_tags_at(place, global_step) if global_step else ())
        with disk_space_errors(place):
            # TensorBoard drops everything from the purged step on.
            self._writer = self._open(str(place), purge_step=(global_step and global_step + 1) if earlier else None)
        self._owner, self._step = (seed, condition), global_step

    def step(self, global_step: int, loss: float, norms: Mapping[str, float], tokens_per_second: float) -> None:
        values = {"loss/train": loss, "speed/tokens_per_second": tokens_per_second}
        values |= {f"gradient_norm/{name}": norm for name, norm in norms.items()}
        self._write(global_step, values)

    def spectrum(self, global_step: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        points = {f"spectrum/{name}": value for name, value in known.items()}
        # TensorBoard stores float32, whose steps at 1 are as large as what is to be seen there.
        points |= {
            f"spectrum/{name}_minus_1": value - 1
            for name, value in known.items()
            if name in ("norm_max", "norm_min", "adapter_max")
        }
        self._write(global_step, points)

    def holdout(self, phase: int, losses: Mapping[str, float]) -> None:
        # A lone surrogate, which JSON can smuggle into a name, has no UTF-8 form.
        points = {f"holdout/{printable(task)}": loss for task, loss in losses.items()}
        points["holdout_phase"] = float(phase + 1)
        missing = {tag: value for tag, value in points.items() if tag not in self._held}
        self._write(self._step, missing)

    def close(self) -> None:
        if self._writer is not None:
            with disk_space_errors(self.folder):
                self._writer.close()
            self._writer = None

    def _write(self, global_step: int, values: Mapping[str, float]) -> None:
        if global_step != self._step:
            self._held = frozenset()
        self._step = global_step
        writer: Any = self._writer
        with disk_space_errors(self.folder):
            for tag, value in values.items():
                writer.add_scalar(tag, value, global_step)
            writer.flush()


NO_LOG = Log()


def _await_next_second(files: list[Path]) -> None:
    """Readers take the files of a folder in the order of their names, which tell seconds apart and no less."""
    newest = max((file.name.split(".")[3] for file in files if file.name.count(".") >= 3), default="0")
    end = time.monotonic() + 1.1
    while newest.isdecimal() and int(time.time()) <= int(newest) and time.monotonic() < end:
        time.sleep(0.02)


def _tags_at(folder: Path, step: int) -> set[str]:
    """Tags of the points at ``step`` in the event files of ``folder``; a record cut short by a crash ends its file."""
    loader: Any = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")  # has no types

    tags: set[str] = set()
    for file in sorted(folder.glob("events.*")):
        for event in loader.LegacyEventFileLoader(str(file)).Load():
            if event.HasField("session_log") and event.step <= step:
                tags.clear()
            if event.step == step:
                tags |= {value.tag for value in event.summary.value}
    return tags
