"""No links in a run folder: nothing in it leads out of it."""

import os
import stat
from pathlib import Path

from backends.files import kind_of
from reference.errors import RunFolderError


def refuse_links(folder: Path) -> None:
    """Raise RunFolderError for a run folder with a link, a named pipe, a socket or a device in it, however deep.

    A command that wrote into such a folder, received from somebody else, would overwrite a file elsewhere through the
    link; one that read from it would take another run's adapters for its own, or wait for ever. The path to the folder
    may have links in it. A folder that is no run folder is left to the reader, which says so; one that
    holds a run for every order of the tasks counts as a run folder.
    """
    ours = any(os.path.lexists(folder / name) for name in ("run.json", "results.jsonl", "assistant.json", ".lock"))
    if not os.path.isdir(folder) or not (ours or any(folder.glob("order-*"))):
        return
    waiting = [folder]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as found:
                for entry in sorted(found, key=lambda entry: entry.name):
                    try:
                        mode = entry.stat(follow_symlinks=False).st_mode
                    except FileNotFoundError:
                        continue  # a temporary file of a run that is going on
                    if stat.S_ISDIR(mode):
                        waiting.append(Path(entry.path))
                    elif not stat.S_ISREG(mode):
                        raise RunFolderError(
                            entry.path,
                            got=f"a link to {os.readlink(entry)}" if stat.S_ISLNK(mode) else kind_of(mode),
                            allowed="plain files and folders alone in a run folder",
                            remedy="copy the run again with its files themselves (cp -rL follows links), or, if the "
                            "folder came from somebody else, do not trust it",
                        )
    except OSError as error:
        raise RunFolderError(
            str(error.filename or folder),
            got=error.strerror or str(error),
            allowed="a run folder that can be read to its last file",
            remedy="check the permissions in the folder",
        ) from error
