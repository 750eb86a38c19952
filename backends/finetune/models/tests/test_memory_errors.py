"""A lack of memory ends in one message, and the run folder goes on afterwards."""

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.models.memory_errors import memory_errors
from reference.errors import OutOfMemoryError


def far_too_much_in_pytorch():
    torch.empty(2**60, dtype=torch.uint8)


def far_too_much_in_jax():
    jax = pytest.importorskip("jax")
    jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros((2**50,), "uint8") + 1)())


@pytest.mark.clause("ERR-2")
@pytest.mark.parametrize("work", [far_too_much_in_pytorch, far_too_much_in_jax])
def test_what_a_framework_raises_is_told_with_a_remedy(work):
    with pytest.raises(OutOfMemoryError, match=r"step 3: got .+batch_size"), memory_errors("step 3"):
        work()


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("step 3"):
        raise RuntimeError("shapes do not fit")


def test_a_run_says_so_and_goes_on_later(tmp_path, crma, finetune_command, monkeypatch):
    pytest.importorskip("peft")
    from backends.finetune.engines.torch import engine as torch_engine

    step, calls = torch_engine.TorchEngine.step, []

    def full(self, batch, index, memory=None):
        calls.append(index)
        if len(calls) == 5:
            far_too_much_in_pytorch()
        return step(self, batch, index, memory)

    monkeypatch.setattr(torch_engine.TorchEngine, "step", full)
    frozen = ("--conditions", "frozen")
    code, _, error = crma(finetune_command(tmp_path / "run", *frozen))
    assert code == 2
    assert "step 5 on 3 x" in error
    assert "Traceback" not in error
    monkeypatch.undo()
    assert crma(finetune_command(tmp_path / "run", *frozen))[0] == 0
