"""The command ``crma``: one file for each of its commands."""

from backends.finetune.cli.program import main

__all__ = ["main"]
