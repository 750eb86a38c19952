"""A folder of this program's: one process at a time works in it, and nothing of anybody else's is touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from backends.atomic import disk_space_errors
from backends.files import read_json
from backends.finetune.runs.links import refuse_links
from reference.errors import DiskSpaceError, RunFolderError


class LockedFolder:
    """Raises: RunFolderError, as :func:`backends.finetune.runs.links.refuse_links`.

    Attributes:
        IDENTITY, FIELDS: the file by which a folder is known as ours, and fields that it has. PLACES: where a killed
            process can have left a temporary file. MADE_BY, OPTION: the command, and how it is given the folder.
    """

    IDENTITY: ClassVar[str]
    FIELDS: ClassVar[frozenset[str]]
    PLACES: ClassVar[tuple[str, ...]]
    MADE_BY: ClassVar[str] = "crma finetune"
    OPTION: ClassVar[str] = "--out"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        refuse_links(self.path)
        self.identity = self.path / self.IDENTITY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and clear away what a killed one was writing.

        Raises: RunFolderError for a folder in use, and for one with files in it that is no run folder.
        """
        lock = FileLock(self.path / ".lock")
        try:
            with disk_space_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                self._refuse_foreign_folder()
                self._refuse_full_lock()
                lock.acquire(timeout=0)
        except DiskSpaceError:
            raise
        except Timeout as error:
            raise RunFolderError(
                str(self.path),
                got="a folder that another process is working in",
                allowed="one process per folder",
                remedy=f"wait for the other process, or choose another {self.OPTION}",
            ) from error
        except OSError as error:
            raise RunFolderError(
                str(self.path),
                got=error.strerror or str(error),
                allowed="a folder that can be written",
                remedy=f"choose another {self.OPTION}",
            ) from error
        try:
            if self._is_ours():
                for place in self.PLACES:
                    for leftover in self.path.glob(f"{place}.*.tmp"):
                        leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def _refuse_foreign_folder(self) -> None:
        visible = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        if visible and not self._is_ours():
            raise RunFolderError(
                str(self.path),
                got=f"a folder with other files in it ({', '.join(visible[:3])})"
                + (f", whose {self.IDENTITY} is not this program's, or is damaged" if self.identity.exists() else ""),
                allowed=f"a new or empty folder, or one that `{self.MADE_BY}` made",
                remedy=f"choose another {self.OPTION}",
            )

    def _refuse_full_lock(self) -> None:
        """The lock is emptied when it is taken: under its name, a hard link could hold somebody's work."""
        file = self.path / ".lock"
        if file.exists() and file.stat().st_size:
            raise RunFolderError(
                str(file),
                got=f"{file.stat().st_size:,} bytes",
                allowed=f"the empty file by which `{self.MADE_BY}` holds its folder",
                remedy=f"choose another {self.OPTION}, or move the file away if it is yours",
            )

    def _is_ours(self) -> bool:
        try:
            identity = read_json(self.identity)
        except (OSError, ValueError):
            return False
        return isinstance(identity, dict) and identity.keys() >= self.FIELDS
