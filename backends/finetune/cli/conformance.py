"""``crma conformance``: the suite for ports, with its own options."""

from __future__ import annotations

import subprocess
import sys

import typer


def conformance(context: typer.Context) -> int:
    """The exit code of ``python -m conformance`` with the arguments that follow."""
    # -P: what lies in the current folder does not hide the suite or its parts
    return subprocess.run([sys.executable, "-P", "-m", "conformance", *context.args], check=False).returncode
