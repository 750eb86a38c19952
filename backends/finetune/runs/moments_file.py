"""The file of the moments that a data budget needs, whatever the framework, a sealed safetensors file: ``totals``,
(layers, n r, n r) in float64, and ``count`` (), how many tokens. Clause: DATA-1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from backends.atomic import atomic_write
from backends.finetune.runs.checkpoint_file import damaged_phase
from backends.sealed import read_sealed, seal

Float64 = NDArray[np.float64]


def write_moments(path: Path, totals: Any, count: int) -> None:
    """Atomically. Raises: DiskSpaceError."""
    arrays = {"totals": np.ascontiguousarray(totals, np.float64), "count": np.array(count, np.int64)}
    atomic_write(path, seal(safetensors.numpy.save(arrays)))


def read_moments(path: Path) -> tuple[Float64, int]:
    """The totals and the count. Raises: RunFolderError, unless the file is whole and holds just these."""
    try:
        arrays = safetensors.numpy.load(read_sealed(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_phase(path, f"{type(error).__name__}: {error}") from error
    found = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if found != {"totals": (np.float64, 3), "count": (np.int64, 0)}:
        raise damaged_phase(path, f"arrays {found}")
    return arrays["totals"], int(arrays["count"])
