"""The processes that share one run: started by torchrun, or a single one."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from reference.errors import BackendError


class World:
    """A world of one process, and what is asked of one of several. ``rank`` of this process, ``size`` = how many."""

    rank, size = 0, 1

    def barrier(self) -> None:
        """Wait until every process is here."""

    def agree(self, parts: Mapping[str, str]) -> None:
        """Compare what this process is about to work on with every other one's, before anything is computed.

        Args:
            parts: name of a part (the model, the tasks) -> its digest.

        Raises: BackendError in every process, naming the processes and the parts that differ; and where one does not
            answer in time.
        """

    def joined(self) -> AbstractContextManager[None]:
        """The block in which the processes work together; behind it they part.

        Raises: BackendError if another process has ended before its time.
        """
        return nullcontext()


SINGLE = World()


def world_size() -> int:
    """How many processes torchrun has started; 1 without it. Raises: BackendError."""
    found = os.environ.get("WORLD_SIZE", "1")
    if not found.isdecimal() or int(found) < 1:
        raise BackendError(
            "WORLD_SIZE",
            got=repr(found),
            allowed="the number of processes, which torchrun sets",
            remedy="unset it for a single process",
        )
    return int(found)
