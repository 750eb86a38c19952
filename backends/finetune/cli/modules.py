"""Programs of the other packages as commands: ``crma conformance`` is ``python -P -m conformance``.

With -P, what lies in the current folder hides neither the suite nor its parts. Nothing of them is imported here, since
they are built on this package.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import typer

#: command -> module, and what it does
MODULES = {
    "conformance": ("conformance", "test a port: python -m conformance, with its options"),
    "statement": ("conformance.statement", "check a statement of conformance again"),
    "golden-vectors": ("conformance.golden_vectors", "write or check the golden vectors"),
    "tolerances": ("conformance.tolerances", "print the tolerances of the suite with their reasons"),
    "evidence": ("bench.evidence", "check the tables that come from stored results"),
    "bench": ("bench", "run a measurement: crma bench NAME, with its options"),
}


def runner(command: str) -> Callable[[typer.Context], int]:
    """The command that runs a module of ``MODULES`` in a process of its own, and gives its exit code."""

    def run(context: typer.Context) -> int:
        module, arguments = MODULES[command][0], context.args
        if command == "bench":
            name, arguments = "".join(arguments[:1]).replace("-", "_"), arguments[1:]
            module = f"bench.{name}"
            if not name.isidentifier() or find_spec(module) is None:
                raise typer.BadParameter("name one of the programs that bench/README.md lists", param_hint="NAME")
        return subprocess.run([sys.executable, "-P", "-m", module, *arguments], check=False).returncode

    return run
