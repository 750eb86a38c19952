"""The kernels under what every port is asked: numbers, gradients, refusals, what is not finite. In a fresh process.

They take a minute in the full profile. The whole suite, ``pytest conformance/ --backend=torch-triton``, takes many in
Triton's interpreter.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("test_golden_vectors.py", "test_corners.py", "test_refusals.py", "test_non_finite_inputs.py")


@pytest.mark.parametrize("profile", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_the_kernels_pass_a_part_of_the_suite(profile: str) -> None:
    pytest.importorskip("triton")
    suite = Path(__file__).parents[4] / "conformance"
    command = [sys.executable, "-m", "pytest", "-q", "--backend=torch-triton", "--profile", profile, "-m", "not slow"]
    command += [str(suite / file) for file in FILES]
    done = subprocess.run(command, cwd=suite.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
