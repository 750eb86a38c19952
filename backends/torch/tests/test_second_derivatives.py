"""Derivatives of derivatives, and forward mode: those of the plain formulas, in every form that torch has."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import Function, forward_ad, functional, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import backends.torch
from backends.torch import CRMAAdapter, attach_crma, sinkhorn_projection
from backends.torch.autodiff import plain_adapter
from backends.torch.conftest import IDS, tiny_model
from backends.torch.residual_mixing import _ResidualMixing, _Sigmoid, _Strength, adapter_strength, residual_mixing
from backends.torch.sinkhorn_projection import _open_projection, _OpenProjection, _Projection

pytestmark = pytest.mark.clause("GRAD-7")
ALL = (0, 1, 2, 3)
Map = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(n: int = 2, rank: int = 2, d: int = 5, gate: float = 0.3, tokens: int = 2) -> tuple[Tensor, ...]:
    return draw(tokens, d), draw(n, n, seed=1), torch.full((1,), gate, dtype=torch.float64), draw(n, rank, d, seed=2)


def closed(iterations: int = 3) -> Map:
    def adapter(x: Tensor, logits: Tensor, gate: Tensor, basis: Tensor) -> Tensor:
        return residual_mixing(x, sinkhorn_projection(logits, iterations), adapter_strength(gate, basis), basis)

    return adapter


def plain(iterations: int = 3) -> Map:
    return lambda x, logits, gate, basis: plain_adapter(x, logits, gate.reshape(()), basis, iterations)


def loss(adapter: Map) -> Map:
    return lambda *values: adapter(*values).pow(3).sum()


def penalty(adapter: Map, gradient: Callable[..., tuple[Tensor, ...]]) -> Map:
    return lambda *values: squares(gradient(loss(adapter), *values))


def squares(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


CASES: dict[type[Function], tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    _ResidualMixing: (residual_mixing, (draw(2, 3, 5), draw(2, 2, seed=1), draw(1, seed=2), draw(2, 2, 5, seed=3))),
    _Projection: (lambda logits: sinkhorn_projection(logits, 2), (draw(2, 3, 3),)),
    _OpenProjection: (lambda logits: _open_projection(logits, 2), (draw(2, 3, 3),)),
    _Strength: (adapter_strength, (draw(2), draw(2, 2, 2, 5, seed=1))),
    _Sigmoid: (_Sigmoid.apply, (draw(3),)),
}


def functions_of(package: Any) -> set[type[Function]]:
    """Every torch.autograd.Function that a module of ``package`` defines; its kernels have none but torch's own."""
    found: set[type[Function]] = set()
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(("test_", "conftest", "kernels")):
            continue
        values = vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
        found |= {each for each in values if isinstance(each, type) and issubclass(each, Function) and each != Function}
    return found


def test_every_function_with_a_gradient_of_its_own_is_a_case_here() -> None:
    assert functions_of(backends.torch) == set(CASES)


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_every_function_passes_the_checks_of_torch(function: type[Function]) -> None:
    """Against differences: reverse over reverse, forward over reverse, and in batches, which ``vmap`` makes."""
    call, values = CASES[function]
    leaves = [value.clone().requires_grad_() for value in values]
    forward = function is not _Sigmoid  # which only ever runs in a backward pass
    assert gradcheck(call, leaves, check_forward_ad=forward, check_batched_grad=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=forward, check_rev_over_rev=True)


def pushed(f: Map, values: tuple[Tensor, ...]) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(*[forward_ad.make_dual(value, value + 1) for value in values]))


def added_to_the_loss(adapter: Map, values: tuple[Tensor, ...], *, backward: bool) -> Any:
    leaves = [value.clone().requires_grad_() for value in values]
    first = loss(adapter)(*leaves)
    grads = torch.autograd.grad(first, leaves, create_graph=True)
    total = first + squares(grads)
    if not backward:
        return torch.autograd.grad(total, leaves)
    total.backward()
    return [leaf.grad for leaf in leaves]


def one_input_alone(adapter: Map, values: tuple[Tensor, ...]) -> Any:
    leaves = [value.clone().requires_grad_() for value in values]
    (gradient,) = torch.autograd.grad(loss(adapter)(*leaves), leaves[0], create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), leaves, allow_unused=True)


def three_times(adapter: Map, values: tuple[Tensor, ...]) -> Any:
    def once(f: Map, *at: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(*at), at, create_graph=True)

    leaves = tuple(value.clone().requires_grad_() for value in values)
    return torch.autograd.grad(squares(once(penalty(adapter, once), *leaves)), leaves)


def by_func(f: Map, *values: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = func.grad(f, ALL)(*values)
    return gradients


def each_row(f: Callable[..., Any], values: tuple[Tensor, ...]) -> Any:
    return func.vmap(f, (0, None, None, None))(torch.stack([values[0], values[0] + 1]), *values[1:])


def stepped(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value + 1 for value in values)


FORMS: dict[str, Callable[[Map, tuple[Tensor, ...]], Any]] = {
    "added to the loss": lambda a, v: added_to_the_loss(a, v, backward=False),
    "backward": lambda a, v: added_to_the_loss(a, v, backward=True),
    "alone, unused allowed": one_input_alone,
    "third derivative": three_times,
    "func.grad of grad": lambda a, v: func.grad(penalty(a, by_func), ALL)(*v),
    "func.hessian": lambda a, v: func.hessian(loss(a), ALL)(*v),
    "jacrev of jacrev": lambda a, v: func.jacrev(func.jacrev(loss(a), ALL), ALL)(*v),
    "jacrev of jacfwd": lambda a, v: func.jacrev(func.jacfwd(loss(a), ALL), ALL)(*v),
    "jacfwd of jacfwd": lambda a, v: func.jacfwd(func.jacfwd(loss(a), ALL), ALL)(*v),
    "func.jvp": lambda a, v: func.jvp(a, v, stepped(v)),
    "dual numbers": pushed,
    "functional.hvp": lambda a, v: functional.hvp(loss(a), v, stepped(v)),
    "functional.vhp": lambda a, v: functional.vhp(loss(a), v, stepped(v)),
    "functional.hessian": lambda a, v: functional.hessian(loss(a), v),
    "in batches": lambda a, v: functional.hessian(loss(a), v, vectorize=True),
    "vmap of hessian": lambda a, v: each_row(func.hessian(loss(a), ALL), v),
    "vmap of grad of grad": lambda a, v: each_row(func.grad(penalty(a, by_func), ALL), v),
    "no_grad around func": lambda a, v: torch.no_grad()(lambda: func.grad(penalty(a, by_func), ALL)(*v))(),
}


def flat(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [each for value in values for each in flat(value)]


def assert_agree(actual: Any, expected: Any, unit: float = 1e-9) -> None:
    actual, expected = flat(actual), flat(expected)
    assert len(actual) == len(expected) > 0
    largest = max(float(value.abs().max()) for value in expected)
    assert largest > 0
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=unit * largest)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_derivative_of_the_plain_formula(form: str) -> None:
    assert_agree(FORMS[form](closed(), inputs()), FORMS[form](plain(), inputs()))


@pytest.mark.parametrize("form", ["added to the loss", "func.hessian", "func.grad of grad"])
@pytest.mark.parametrize(
    ("sizes", "iterations"),
    [({"n": 1, "rank": 3}, 2), ({}, 1), ({"n": 3, "d": 9}, 20), ({"tokens": 1}, 3)]
    + [({"gate": gate}, 3) for gate in (-60.0, -800.0, 20.0)],
)
def test_corners(form: str, sizes: dict[str, Any], iterations: int) -> None:
    values = inputs(**sizes)
    assert_agree(FORMS[form](closed(iterations), values), FORMS[form](plain(iterations), values))


@pytest.mark.parametrize("form", ["added to the loss", "jacfwd of jacfwd", "jacrev of jacrev"])
def test_of_equal_row_sums_the_first_is_the_largest_in_each_derivative(form: str) -> None:
    x, logits, gate, basis = inputs(n=3, d=7)
    values = (x, torch.zeros_like(logits), gate, basis)
    assert_agree(FORMS[form](closed(1), values), FORMS[form](plain(1), values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_float32_and_for_rounded_x(dtype: torch.dtype) -> None:
    """Against the truth in float64; what is in bfloat16 (y, x' and the penalty's part through them) is rounded."""
    values = inputs(n=3, d=8)
    rounded = (values[0].to(dtype), *(value.float() for value in values[1:]))
    truth = FORMS["added to the loss"](plain(), tuple(value.double() for value in rounded))
    actual = FORMS["added to the loss"](closed(), rounded)
    assert [value.dtype for value in actual] == [dtype, *[torch.float32] * 3]
    assert_agree(actual, truth, unit=1e-5 if dtype == torch.float32 else 2e-2)


def test_strided_inputs() -> None:
    values = inputs(n=3, d=8)
    strided = tuple(value.movedim(0, -1).contiguous().movedim(-1, 0) for value in values)
    assert not strided[0].is_contiguous()
    assert not strided[3].is_contiguous()
    form = FORMS["added to the loss"]
    assert_agree(form(closed(), strided), form(closed(), values), unit=1e-13)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_the_gate_keeps_its_digits_where_it_is_open(mode: str) -> None:
    """d2 sigmoid = s s' (s' - s), s' = sigmoid(-gamma): in float32 ``1 - s`` is 0 from gamma = 17 on."""
    gate, basis = torch.tensor([18.0]), draw(2, 2, 5).float()
    once = func.jacrev if mode == "reverse" else func.jacfwd
    twice = once(once(lambda g: adapter_strength(g, basis).sum()))
    s, other = gate.double().sigmoid(), (-gate.double()).sigmoid()
    expected = s * other * (other - s) * adapter_strength(gate, basis).double()
    torch.testing.assert_close(twice(gate).double().flatten(), expected, rtol=1e-5, atol=0)


@pytest.fixture
def model() -> Any:
    """In float64, with open adapters, and attention that has a second derivative on a CPU."""
    model = tiny_model("llama").requires_grad_(False)
    model.config._attn_implementation = "eager"
    attach_crma(model, gate_logit=1.0)
    return model.double()


def differentiated_twice(model: Any) -> list[tuple[Tensor, ...]]:
    """The gradients of the adapters, and of the sum of these."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(model(IDS, labels=IDS).loss, parameters, create_graph=True)
    return [grads, torch.autograd.grad(torch.stack([gradient.sum() for gradient in grads]).sum(), parameters)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_through_a_model_whose_layers_are_prepared_together(
    model: Any, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    _, actual = differentiated_twice(model)

    def forward(adapter: CRMAAdapter, x: Tensor) -> Tensor:
        return plain_adapter(x, adapter.mix_logits, adapter.gate_logit.reshape(()), adapter.basis, 20)

    monkeypatch.setattr(CRMAAdapter, "forward", forward)
    assert_agree(actual, differentiated_twice(model)[1], unit=1e-5)


def test_functional_transforms_of_a_model(model: Any) -> None:
    """Forward over reverse through a functional call, and nothing of it is left behind."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def of(parameters: dict[str, Tensor]) -> Tensor:
        loss: Tensor = func.functional_call(model, parameters, (IDS,), {"labels": IDS}).loss
        return loss

    pushed = func.jvp(func.grad(of), (named,), ({name: torch.ones_like(value) for name, value in named.items()},))
    for actual, expected in zip(pushed, differentiated_twice(model), strict=True):
        assert_agree(list(actual.values()), expected, unit=1e-5)  # the model's own norms compute in float32


def test_under_a_checkpoint_of_an_adapter_alone() -> None:
    adapter, x = CRMAAdapter(8, 2, 2, iterations=3).double(), draw(3, 8)
    parameters = list(adapter.parameters())

    def twice(call: Map) -> tuple[Tensor, ...]:
        y = call(x)
        grads = torch.autograd.grad(y.pow(3).sum(), parameters, create_graph=True)
        return torch.autograd.grad(squares(grads), parameters)

    assert_agree(twice(lambda x: checkpoint(adapter, x, use_reentrant=False)), twice(adapter))


@pytest.mark.clause("GRAD-6")
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 2e-4, 1e-2, 1.0, 1e6])
def test_the_gradient_of_a_small_basis_stays_in_range(scale: float) -> None:
    """Within the range of spec/40, and where the true gradient fits: 1 / kappa^2 alone would leave it."""
    x, logits, gate, basis = (value.float() for value in inputs(n=2, d=8))
    basis = basis * (scale / float(basis.norm()))
    x = x * (min(1e36 * scale, 1e30 / scale) / float(x.norm()))  # the gradient, some |x| / |A|, fits
    single = [value.clone().requires_grad_() for value in (x, logits, gate, basis)]
    wide = [value.double().requires_grad_() for value in (x, logits, gate, basis)]
    closed()(*single).sum().backward()
    plain()(*wide).sum().backward()
    for one, other in zip(single, wide, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        largest = float(other.grad.abs().max())
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=0, atol=1e-5 * largest)
