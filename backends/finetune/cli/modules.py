"""Programs of the other packages: ``crma conformance`` is ``python -P -m conformance``.

With -P, what lies in the current folder hides neither the suite nor its parts. Nothing of them is imported here, since
they are built on this package.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

#: command -> module, and what it does
MODULES = {
    "conformance": ("conformance", "Test a port: python -m conformance, with its options."),
    "statement": ("conformance.statement", "Check a statement of conformance again."),
    "golden-vectors": ("conformance.golden_vectors", "Write or check the golden vectors of the specification."),
    "tolerances": ("conformance.tolerances", "Print the tolerances of the suite with their reasons."),
    "evidence": ("bench.evidence", "Check the tables that come from stored results."),
    "bench": ("bench", "Run a measurement: crma bench NAME."),
}


def run_module(command: str, arguments: Sequence[str]) -> int:
    """Run a command of ``MODULES`` in a process of its own; returns its exit code."""
    module = MODULES[command][0]
    if command == "bench":
        name, arguments = "".join(arguments[:1]).replace("-", "_"), arguments[1:]
        if not name.isidentifier() or find_spec(f"bench.{name}") is None:
            print("crma: bench: got no program of this name; bench/README.md lists them", file=sys.stderr)
            return 2
        module = f"bench.{name}"
    return subprocess.run([sys.executable, "-P", "-m", module, *arguments], check=False).returncode
