"""``load_backend("torch-triton")``, in fresh processes: how kernels are made is settled at their first use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what is told to a machine without a GPU")


def said(code, **environment):
    pytest.importorskip("triton")
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "import os; from backends import load_backend; " + code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]


@pytest.mark.clause("BACK-2", "ERR-3")
def test_says_where_it_computes(kernels):
    device = "cuda (" if torch.cuda.is_available() else "cpu (Triton interpreter)"
    answer = said(
        "b = load_backend('torch-triton'); print(b.name, b.version, b.device, os.environ.get('TRITON_INTERPRET'))"
    )
    assert answer.startswith("torch-triton torch ")
    assert f" {device}" in answer
    assert answer.strip().endswith("None")  # other kernels of the process are not switched over


@needs_no_gpu
@pytest.mark.clause("ERR-3")
def test_kernels_made_for_a_gpu_are_no_silent_fallback(kernels):
    first = "from backends.torch.kernels import sinkhorn_projection as project; "
    answer = said(first + "load_backend('torch-triton')")
    assert "DeviceUnavailableError: backend torch-triton: got no CUDA device" in answer
    answer = said(first + "import torch; project(torch.zeros(2, 2))")
    assert "DeviceUnavailableError: mix_logits: got a tensor on cpu" in answer
    answer = said(first + "print(load_backend('torch-triton').device)", TRITON_INTERPRET="1")
    assert answer.startswith("cpu (Triton interpreter)")


@pytest.mark.clause("BACK-2", "ERR-2")
def test_a_missing_triton_is_said_in_one_line():
    answer = said("import sys; sys.modules['triton'] = None; load_backend('torch-triton')")
    assert "MissingPackageError: kernels: got no package named triton" in answer
    assert "pip install 'crma[triton]'" in answer
