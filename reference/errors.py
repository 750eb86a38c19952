"""The one tree of exceptions. Every message names the field, what it got, what is allowed and what to try.

Clauses: ERR-1..ERR-4.
"""


class CRMAError(Exception):
    """Base of every error this project raises on purpose.

    ``field`` is the name of the argument, option, file or tensor at fault; ``got`` what it was; ``allowed`` what it
    may be; ``remedy`` what to try next. The four are kept as attributes, so that a caller can show them its own way.
    """

    def __init__(self, field: str, *, got: object, allowed: str, remedy: str) -> None:
        self.field, self.got, self.allowed, self.remedy = field, got, allowed, remedy
        super().__init__(f"{field}: got {got}; allowed: {allowed}. Try: {remedy}")

    def __reduce__(self) -> tuple[object, ...]:  # the default would call __init__ with the message alone
        return (_rebuild, (type(self), self.field, str(self.got), self.allowed, self.remedy))


def _rebuild(cls: type[CRMAError], field: str, got: str, allowed: str, remedy: str) -> CRMAError:
    return cls(field, got=got, allowed=allowed, remedy=remedy)


class ShapeError(CRMAError, ValueError):
    """An array has the wrong number of axes, or axes that do not fit another array's."""


class DtypeError(CRMAError, TypeError):
    """An array is of a dtype that the function does not compute with, such as integers or floats of 8 bits."""


class ConfigError(CRMAError, ValueError):
    """A setting lies outside its allowed range, or settings contradict each other."""


class NonFiniteError(CRMAError, ValueError):
    """An input, a loss or a gradient is NaN or infinite."""


class DegenerateBasisError(CRMAError, ValueError):
    """The basis of an adapter is zero, so the gate has no scale to be divided by."""


class BackendError(CRMAError):
    """A backend is unknown, or does not have a function that the interface asks for."""


class DeviceUnavailableError(BackendError):
    """The device that a backend names is not in this machine. There is no silent fallback."""


class PortStoppedError(BackendError):
    """The program behind an executable backend died, hung, or answered something that is not the protocol."""


class PortResultError(BackendError):
    """A port returned something that is no result of its function, or changed what it says of itself: no refusal."""


class MissingPackageError(CRMAError, ImportError):
    """A package that the chosen option needs is not installed."""


class StateFileError(CRMAError):
    """An adapter state file is damaged, of another layout, or of another model."""


class ProtocolError(CRMAError, ValueError):
    """A fine-tuning protocol is unknown, or one of its fields is wrong."""


class ModelError(CRMAError):
    """A model folder is missing, incomplete, or of an architecture that cannot carry the adapter."""


class TaskDataError(CRMAError, ValueError):
    """A task's training or holdout data is wrong; names the file and the line."""


class RunFolderError(CRMAError):
    """A run folder belongs to another configuration, is in use, or holds a damaged checkpoint."""


class PromiseBrokenError(CRMAError):
    """A phase would leave an earlier task worse than was promised; it was undone (CL-12)."""


class DiskSpaceError(CRMAError, OSError):
    """The disk has no room for a file. Nothing that was already written is lost."""


class OutOfMemoryError(CRMAError, MemoryError):
    """A device has no memory for a step or an evaluation. Nothing that was already written is lost."""


class TrainingDivergedError(CRMAError, ArithmeticError):
    """A loss or a gradient norm became non-finite during training."""
