"""``crma certify RUN``: pass or fail for every promised bound of a run, and the exit code to go with it."""

from pathlib import Path
from typing import Annotated

from backends.finetune.cli.options import RunFolder, option

FAILED = 1


def certify(
    folder: RunFolder,
    json: Annotated[Path | None, option(metavar="FILE", help="also write all checks as JSON")] = None,
    max_drift: Annotated[
        float | None, option(metavar="PERCENT", help="fail if a prior task of MODULAR drifts by more")
    ] = None,
) -> int:
    """Run the checks and print them: 0 if all pass, 1 if one fails. Raises: as ``certify_run``, and DiskSpaceError."""
    from json import dumps

    import torch

    from backends.atomic import atomic_write
    from backends.finetune.certify.certification import certify_run
    from backends.finetune.certify.table import show
    from backends.finetune.report.terminal import Terminal
    from reference.errors import ConfigError, DiskSpaceError

    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    certification = certify_run(folder, max_drift)
    if json is not None:
        try:
            atomic_write(json, dumps(certification.as_json(), indent=1, allow_nan=False).encode() + b"\n")
        except DiskSpaceError:
            raise
        except OSError as error:
            raise ConfigError(
                "--json",
                got=f"{json}: {error.strerror or error}",
                allowed="a file that can be written",
                remedy="name a file in a folder of yours",
            ) from error
    show(certification, Terminal())
    return 0 if certification.passed else FAILED
