"""``crma certify RUN``: pass or fail for every promised bound of a run, and the exit code to go with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

FAILED = 1


def add_parser(commands: Any) -> None:
    """Add ``certify`` to the commands of ``crma``."""
    parser = commands.add_parser("certify", help="check every promised bound of a run again, from its files")
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of `crma finetune`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all checks as JSON")
    parser.add_argument(
        "--max-drift", type=float, metavar="PERCENT", help="fail if a prior task of MODULAR drifts by more"
    )
    parser.set_defaults(run=certify)


def certify(options: argparse.Namespace) -> int:
    """Run the checks and print them: 0 if all pass, 1 if one fails. Raises: as ``certify_run``, and DiskSpaceError."""
    import json

    import torch

    from backends.atomic import atomic_write
    from backends.finetune.certify.certification import certify_run
    from backends.finetune.certify.table import show
    from backends.finetune.report.terminal import Terminal
    from reference.errors import ConfigError, DiskSpaceError

    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    certification = certify_run(options.folder, options.max_drift)
    if options.json is not None:
        try:
            atomic_write(options.json, json.dumps(certification.as_json(), indent=1, allow_nan=False).encode() + b"\n")
        except DiskSpaceError:
            raise
        except OSError as error:
            raise ConfigError(
                "--json",
                got=f"{options.json}: {error.strerror or error}",
                allowed="a file that can be written",
                remedy="name a file in a folder of yours",
            ) from error
    show(certification, Terminal())
    return 0 if certification.passed else FAILED
