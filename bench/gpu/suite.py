"""The quick profile of the conformance suite on the backends of a GPU."""

import os
from importlib.util import find_spec

from bench.conformance_suite import measured
from bench.gpu.report import Report
from reference.errors import BackendError, MissingPackageError

#: as ``--backend`` names it on a GPU, and without one
BACKENDS = {
    "torch-cuda": ("torch-cuda", "torch-cpu"),
    "torch-plain": ("backends.torch.backend:make_plain_cuda", "torch-cpu"),
    "torch-triton": ("torch-triton", "torch-triton"),
    "jax-cuda": ("jax-cuda", "jax-cpu"),
    "jax-pallas": ("jax-pallas", "jax-pallas"),
}
#: of the suite, in the small form
_FEW = ("test_refusals.py", "-k", "test_attributes or logits")
_NEEDED = ("pytest", "hypothesis", "xdist")
#: processes of tests at most; each has memory of its own on the GPU
PROCESSES = 8


def conformance(name: str, report: Report) -> None:
    """All tests of the profile pass, but for those that the backend may leave out.

    ``torch-cuda`` computes with the Triton kernels, as ``torch-triton`` does, ``torch-plain`` without.
    """
    backend = BACKENDS[name][report.small]
    with report.part(backend) as figures:
        _check(backend)
        processes = 1 if report.small else max(1, min(PROCESSES, len(os.sched_getaffinity(0)) // 2))
        figures |= measured(backend, "quick", processes, _FEW if report.small else ())
        if figures["failed"] or not figures["passed"]:
            raise BackendError(
                f"conformance of {backend}",
                got=f"{figures['failed']} failed, {figures['passed']} passed: {', '.join(figures['failures'][:10])}",
                allowed="no test that fails",
                remedy=f"python -m conformance --backend={backend} --quick -x",
            )


def _check(backend: str) -> None:
    """Raises: MissingPackageError, DeviceUnavailableError."""
    from backends import load_backend

    for name in _NEEDED:
        if find_spec(name) is None:
            raise MissingPackageError(
                "conformance suite",
                got=f"no package named {name}",
                allowed="an installation with the extra 'test'",
                remedy="pip install 'crma[test]'",
            )
    try:
        load_backend(backend)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            backend, got=f"no package named {error.name}", allowed="an installed package", remedy="install its extra"
        ) from error
