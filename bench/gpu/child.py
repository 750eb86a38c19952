"""The process of one section: ``python -m bench.gpu.child DEVICE FILE MODULE FUNCTION [ARGUMENT ...]``.

It ends with 0 if it could report, whatever the outcome.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.report import Report


def main(arguments: Sequence[str]) -> int:
    """Do the work of the section; what goes wrong outside of its parts is a part of its own, ``section``."""
    device, file, module, function, *others = arguments
    report = Report(Path(file), device)
    try:
        getattr(importlib.import_module(module), function)(*others, report)
    except Exception as error:
        with report.part("section"):
            raise error
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
