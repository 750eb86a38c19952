"""``--backend`` from every place, and its errors. Clauses: BACK-1, BACK-2, ERR-2, ERR-3."""

import importlib.util
import re

import pytest

import reference
from conformance.selftest.programs import PACKAGE, PYTEST, ROOT, SUITE, assert_one_clear_error, run

ONE_TEST = PACKAGE / "test_backend_interface.py::test_attributes"


@pytest.mark.clause("BACK-2", "CONF-2")
@pytest.mark.parametrize(
    ("folder", "arguments"),
    [
        (ROOT, (*PYTEST, "conformance/test_backend_interface.py", "-k", "attributes")),
        (None, (*PYTEST, ONE_TEST)),
        (None, (*PYTEST, PACKAGE, "-k", "test_attributes")),
        (ROOT, (*SUITE, "-k", "test_attributes")),
        (None, (*SUITE, "-k", "test_attributes")),
        (None, (*SUITE, ONE_TEST)),
    ],
    ids=[
        "repo root",
        "other folder",
        "other folder, package",
        "module, repo root",
        "module, other folder",
        "module, id",
    ],
)
def test_backend_option_works(folder, arguments, tmp_path):
    done = run(folder or tmp_path, *arguments, "--backend=reference", "--backend=conformance.selftest.port:make_port")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "backend reference: reference, spec" in done.stdout
    assert "numpy-port, selftest, NumPy" in done.stdout
    assert "on cpu, parameters in float32, x in float32, float16, bfloat16, with save_state" in done.stdout
    assert f"against spec {reference.SPEC_VERSION}" in done.stdout
    left = {path.name for path in tmp_path.iterdir()} - {".benchmarks"}  # that one is pytest-benchmark's
    assert not left, "the run left something behind"


@pytest.mark.clause("CONF-3")
@pytest.mark.parametrize("test", ["", "::test_attributes"], ids=["file", "one test"])
def test_a_file_of_the_suite_is_found_by_its_name(test, tmp_path):
    """From any folder, unless that has a file of this name itself; in an expression it stays as it is."""
    command = (*SUITE, f"test_backend_interface.py{test}", "-k", "test_attributes")
    assert "1 passed" in run(tmp_path, *command).stdout
    by_file = run(tmp_path, *SUITE, "-k", "test_backend_interface.py", "--collect-only", "-q").stdout
    assert re.search(r"\d+/\d+ tests collected", by_file), by_file
    (tmp_path / "test_backend_interface.py").write_text("def test_attributes():\n    print('of this folder')\n")
    assert "of this folder" in run(tmp_path, *command, "-s").stdout


@pytest.mark.clause("BACK-2")
def test_default_is_the_reference(tmp_path):
    done = run(tmp_path, *PYTEST, ONE_TEST)
    assert "1 passed" in done.stdout
    assert "backend reference: reference, spec" in done.stdout


@pytest.mark.clause("BACK-1", "BACK-2", "CONF-4", "ERR-2")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("refrence", ("'refrence'", "torch-cpu", "module:factory")),
        ("no_such_module:make", ("No module named", "PYTHONPATH")),
        ("my_port:absent", ("absent", "PYTHONPATH")),
        ("my_port:incomplete", ("without", "adapter_vjp")),
        ("my_port:broken", ("RuntimeError: no driver", "broken()")),
        ("my_port:half", ("float16", "MIX-10")),
    ],
)
def test_a_backend_that_cannot_be_had_is_one_clear_error(name, parts, tmp_path):
    (tmp_path / "my_port.py").write_text(
        "import numpy as np\n"
        "from conformance.selftest.port import NumpyPort\n"
        "class incomplete:\n    name = version = device = 'x'\n    parameter_dtype = np.dtype('float32')\n"
        "    sinkhorn_projection = sinkhorn_projection_vjp = adapter_forward = load_state = print\n"
        "def broken():\n    raise RuntimeError('no driver')\n"
        "def half():\n    return NumpyPort('float16')\n"
    )
    done = run(tmp_path, *PYTEST, ONE_TEST, f"--backend={name}")
    assert_one_clear_error(done, f"--backend={name}", *parts)


@pytest.mark.clause("BACK-2", "ERR-2")
def test_the_module_gives_the_same_error(tmp_path):
    assert_one_clear_error(run(tmp_path, *SUITE, "--backend=refrence"), "'refrence'", "module:factory")


@pytest.mark.clause("ERR-3")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_cuda_without_a_gpu_is_one_clear_error(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(tmp_path, *PYTEST, ONE_TEST, "--backend=torch-cuda")
    assert_one_clear_error(done, "torch-cuda", "GPU")


@pytest.mark.clause("BACK-2")
def test_tests_of_others_are_left_alone(tmp_path):
    """Neither their own argument ``backend`` nor a backend that cannot be had matters to them."""
    (tmp_path / "test_other.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('backend', ['a', 'b'])\n"
        "def test_own_parameter(backend):\n    assert backend in 'ab'\n"
        "def test_plain():\n    pass\n"
    )
    done = run(tmp_path, *PYTEST, "--backend=torch-cuda", "test_other.py")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
