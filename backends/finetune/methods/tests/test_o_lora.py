"""O-LoRA: what is orthogonal costs nothing, and a stack is the sum of its LoRAs."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from backends.finetune.methods.o_lora import earlier_output, orthogonality_loss, stack_lora
from reference.errors import ShapeError


def generator(seed: int) -> Any:
    return torch.Generator().manual_seed(seed)


def test_orthogonal_rows_cost_exactly_nothing():
    rows = torch.randn(3, 4, generator=generator(0))
    a, earlier = torch.zeros(3, 8), torch.zeros(6, 8)
    a[:, ::2], earlier[:3, 1::2] = rows, rows
    assert float(orthogonality_loss(a, earlier)) == 0.0


def test_several_tasks_cost_the_sum_over_tasks_and_entries():
    a, *earlier = (torch.randn(2, 16, generator=generator(seed)) for seed in range(2, 6))
    expected = sum(float(row @ new) ** 2 for each in earlier for row in each for new in a)
    assert float(orthogonality_loss(a, torch.cat(earlier))) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_goes_to_the_new_task_alone():
    a, earlier = (torch.randn(2, 16, generator=generator(seed), requires_grad=True) for seed in (6, 7))
    loss = orthogonality_loss(a, earlier)
    gradient, none = torch.autograd.grad(loss, (a, earlier), allow_unused=True)
    assert none is None
    torch.testing.assert_close(gradient, (2 * a @ earlier.T @ earlier).detach())


def test_a_stack_is_the_sum_of_its_loras():
    x = torch.randn(2, 5, 12, generator=generator(10))
    stack: Any = None
    expected = torch.zeros(2, 5, 7)
    for seed, (rank, scaling) in enumerate([(2, 2.0), (3, 0.5), (1, 1.0)]):
        a, b = torch.randn(rank, 12, generator=generator(seed)), torch.randn(7, rank, generator=generator(seed + 50))
        stack = stack_lora(stack, a, b, scaling)
        expected += scaling * (x @ a.T) @ b.T
    assert [tensor.shape for tensor in stack] == [(6, 12), (7, 6)]
    torch.testing.assert_close(earlier_output(x, *stack), expected, rtol=1e-5, atol=1e-5)


def test_a_stack_is_a_copy_without_gradient():
    a, b = torch.nn.Parameter(torch.ones(1, 3)), torch.nn.Parameter(torch.ones(2, 1))
    stack = stack_lora(None, a, b, 1.0)
    with torch.no_grad():
        a.fill_(9.0)
        b.fill_(9.0)
    assert not any(tensor.requires_grad for tensor in stack)
    assert all((tensor == 1).all() for tensor in stack)


def test_sixteen_bit_inputs_are_computed_in_the_dtype_of_the_stack():
    x = torch.randn(4, 3, generator=generator(11)).bfloat16()
    a, b = torch.randn(2, 3, generator=generator(12)), torch.randn(5, 2, generator=generator(13))
    stack = stack_lora(None, a, b, 1.0)
    assert earlier_output(x, *stack).dtype == torch.float32
    torch.testing.assert_close(earlier_output(x, *stack), earlier_output(x.float(), *stack), rtol=0, atol=0)


def test_loras_of_other_layers_are_refused():
    stack = stack_lora(None, torch.ones(1, 3), torch.ones(2, 1), 1.0)
    for a, b in [((1, 4), (2, 1)), ((1, 3), (5, 1)), ((2, 3), (2, 1))]:
        with pytest.raises(ShapeError, match="a, b"):
            stack_lora(stack, torch.ones(a), torch.ones(b), 1.0)
    with pytest.raises(ShapeError, match="earlier"):
        orthogonality_loss(torch.ones(1, 4), stack[0])
