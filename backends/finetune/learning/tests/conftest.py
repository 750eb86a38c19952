"""The runs with random adapters of the tests of inference."""

from backends.finetune.inference.tests.conftest import make_run, modular_run  # noqa: F401
