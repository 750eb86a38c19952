"""Backends by name. A framework is imported only when one of its backends is chosen."""

import importlib
from typing import cast

import backends.beside  # noqa: F401  first: it refuses a folder that hides `reference`
from backends.executable import is_command, start_executable
from backends.interface import Backend, Gradients, State
from backends.port import Port
from reference.errors import BackendError, CRMAError, MissingPackageError

__all__ = ["BACKENDS", "Backend", "Gradients", "State", "load_backend"]

#: name -> module whose ``make_backend(name)`` builds it
BACKENDS = {
    "reference": "backends.reference_backend",
    "torch-cpu": "backends.torch.backend",
    "torch-cuda": "backends.torch.backend",
    "torch-triton": "backends.torch.backend",
    "jax-cpu": "backends.jax.backend",
    "jax-cuda": "backends.jax.backend",
    "jax-pallas": "backends.jax.pallas_backend",
}


def load_backend(name: str) -> Backend:
    """Build a backend: one of the names in ``BACKENDS``, ``module:factory``, or an executable.

    ``factory`` is called without arguments and returns an object with the functions of ``interface.Backend``. An
    executable is a path (``./port``) or a command of several words (``node port.js``) that speaks the protocol of
    ``backends.executable``.

    Raises:
        BackendError: unknown name, a module that cannot be imported, a port without one of the functions, or an
            executable that does not start or does not answer.
        DeviceUnavailableError: the device that the name promises is missing; there is no fallback.
        MissingPackageError: the backend's framework is not installed.

    Clauses: BACK-1, BACK-2, BACK-5, ERR-3.

    >>> load_backend("reference").device
    'cpu'
    """
    if name in BACKENDS:
        try:
            module = importlib.import_module(BACKENDS[name])
        except ModuleNotFoundError as error:
            extra = name.partition("-")[0]
            raise MissingPackageError(
                f"backend {name}",
                got=f"no package named {error.name}",
                allowed=f"an installation with the extra '{extra}'",
                remedy=f"pip install 'crma[{extra}]'",
            ) from error
        return cast(Backend, module.make_backend(name))
    if is_command(name):
        return cast(Backend, Port(start_executable(name), name))
    if ":" not in name:
        raise BackendError(
            "backend",
            got=repr(name),
            allowed=", ".join(BACKENDS) + ", module:factory, or an executable",
            remedy="name one of these, a factory such as my_port.crma:make_backend, or a program such as ./my_port",
        )
    return _load_port(name)


def _load_port(name: str) -> Backend:
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a module does when it is imported, sys.exit() included
        raise BackendError(
            "backend",
            got=f"{name!r} ({type(error).__name__}: {error})",
            allowed="module:factory, importable from here",
            remedy="install the port, or put its folder on PYTHONPATH, and check the spelling",
        ) from error
    try:
        return cast(Backend, Port(factory(), name))
    except (KeyboardInterrupt, CRMAError):
        raise
    except BaseException as error:  # sys.exit() in a factory would end the suite with its status
        raise BackendError(
            "backend",
            got=f"{name!r}, whose factory failed with {type(error).__name__}: {error}",
            allowed="a factory that returns a backend when called without arguments",
            remedy=f"call {factory_name}() by hand",
        ) from error
