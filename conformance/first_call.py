"""What the first calls of a port change for the rest of its process: ``python -m conformance.first_call NAME``.

In a process of its own, since a port that has been called before has done it already. Clause: BACK-10.
"""

import json
import os
import subprocess
import sys

from backends import Backend, load_backend
from conformance.calls import calls_of, case_of
from conformance.process_state import changes, process_state

#: what an import at the first call may change, as those of frameworks do
OF_IMPORTS = ("filters of warnings", "environment variables", "sys.path", "logging", "logger")


def first_changes(name: str) -> list[str]:
    """One line for each function that changes something. Raises: RuntimeError if the process does not get that far."""
    command = [sys.executable, "-m", "conformance.first_call", name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(
            f"python -m conformance.first_call {name} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return list(json.loads(done.stdout.splitlines()[-1]))


def _look(backend: Backend) -> list[str]:
    found = []
    for call in calls_of(backend, case_of()):
        before = process_state()
        call(backend)
        kept = [change for change in changes(before, process_state()) if not change.startswith(OF_IMPORTS)]
        found += [f"{call.function}: {change}" for change in kept]
    return found


if __name__ == "__main__":
    print(json.dumps(_look(load_backend(sys.argv[1]))))
