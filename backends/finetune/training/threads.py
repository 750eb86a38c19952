"""How many CPU threads a run takes, and what else has to be set before a framework starts."""

import os
import warnings

from reference.errors import ConfigError

MOST = 1024  # no processor runs more at once, and a library that cannot start one ends the process without a word


def set_up_framework(backend: str, threads: int | None) -> int:
    """Set the threads of the backend's framework, and make it and transformers deterministic and quiet.

    Returns: how many threads there are. Call it before the framework computes anything: JAX reads the number once.
    Raises: ConfigError.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST):
        raise ConfigError(
            "--threads", got=threads, allowed=f"an integer from 1 to {MOST}", remedy="leave it out to use all cores"
        )
    if backend.startswith("jax-"):
        _quiet_transformers()
        if threads is not None:
            os.environ["NPROC"] = str(threads)  # what XLA reads instead of the number of cores
        return threads or int(os.environ.get("NPROC", _cores()))
    import torch

    _quiet_transformers()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.get_num_threads()


def _quiet_transformers() -> None:
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
