"""The processes that share one run: started by torchrun, or a single one. Source: ours."""

from __future__ import annotations

from typing import Protocol


class World(Protocol):
    """``rank`` of this process, ``size`` = number of processes."""

    rank: int
    size: int

    def barrier(self) -> None:
        """Wait until every process is here."""
        ...


class SingleProcess:
    """A world of one."""

    rank, size = 0, 1

    def barrier(self) -> None:
        return None


SINGLE: World = SingleProcess()
