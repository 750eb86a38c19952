"""Faults of the vector-Jacobian products, beside a forward pass that is right."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import COTANGENT, VJP, Given, Returns, argument
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.mixing import TransposedMixing
from conformance.selftest.port import COLUMN, ROW, Array, NumpyPort, total


def without(lost: str, gradients: Gradients, *_: Any) -> Gradients:
    """One input's gradient is lost."""
    return gradients._replace(**{lost: np.zeros_like(getattr(gradients, lost))})


class DetachedMixing(NumpyPort):
    """M is a constant in the backward pass: nothing reaches the logits, of the adapter or of the projection."""

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        return np.zeros_like(plain)


class DetachedCorrection(NumpyPort):
    """rho and max rho are constants in the backward pass."""

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        return np.asarray(grad_mixing / total(plain, ROW).max(axis=COLUMN, keepdims=True))


class DetachedLargest(NumpyPort):
    """rho gets its gradient, max rho does not."""

    def share_of_largest(self, row_sums: Array) -> Array:
        return np.zeros_like(row_sums)


class LastArgmax(NumpyPort):
    def share_of_largest(self, row_sums: Array) -> Array:
        return np.flip(super().share_of_largest(np.flip(row_sums, COLUMN)), COLUMN)


class LargestSharedByTies(NumpyPort):
    """Rows that tie for the largest sum share its gradient, as the ``amax`` of some frameworks has it."""

    def share_of_largest(self, row_sums: Array) -> Array:
        ties = row_sums == row_sums.max(axis=COLUMN, keepdims=True)
        return np.asarray(ties / total(ties.astype(row_sums.dtype), COLUMN))


class LargestSharedByAll(NumpyPort):
    def share_of_largest(self, row_sums: Array) -> Array:
        return np.full_like(row_sums, 1 / row_sums.shape[-2])


class TruncatedBackPropagation(NumpyPort):
    """Only the last two iterations are differentiated."""

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        return super().sinkhorn_vjp(log_iterates[-3:], plain, grad_plain)


class LastMatrixForEveryStep(NumpyPort):
    """P stands in for the softmax of every step, as if all of them had converged."""

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        last = np.log(np.maximum(plain, np.finfo(plain.dtype).tiny))
        return super().sinkhorn_vjp([last] * len(log_iterates), plain, grad_plain)


class ImplicitGradient(NumpyPort):
    """The derivative of the fixed point: ``S_bar = P (P_bar - a 1^T - 1 b^T)`` with sums of zero."""

    def sinkhorn_vjp(self, log_iterates: list[Array], plain: Array, grad_plain: Array) -> Array:
        product, n = plain * grad_plain, plain.shape[-1]
        system = np.zeros((*plain.shape[:-2], 2 * n, 2 * n))
        system[..., :n, :n] = np.eye(n) * total(plain, ROW)
        system[..., :n, n:], system[..., n:, :n] = plain, np.swapaxes(plain, -1, -2)
        system[..., n:, n:] = np.eye(n) * np.swapaxes(total(plain, COLUMN), -1, -2)
        sums = np.concatenate([total(product, ROW), np.swapaxes(total(product, COLUMN), -1, -2)], axis=-2)
        both = np.linalg.pinv(system, hermitian=True) @ sums
        by_row, by_column = both[..., :n, :], np.swapaxes(both[..., n:, :], -1, -2)
        return np.asarray(product - plain * (by_row + by_column))


class NoGradientThroughKappa(NumpyPort):
    def strength_vjp(self, gate_logit: Array, basis: Array, grad_strength: Any) -> tuple[Any, Array]:
        return super().strength_vjp(gate_logit, basis, grad_strength)[0], np.zeros_like(basis)


class SigmoidDerivativeCancels(NumpyPort):
    """``s (1 - s)``: 0 from gamma = 17 on, and noise before."""

    def sigmoid_derivative(self, value: Array) -> Any:
        gate = self.sigmoid(value)
        return gate * (1 - gate)


class OneTermOfTheBasis(NumpyPort):
    """The gradient of the basis through the write-out alone, or through the read-in alone."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept

    def basis_terms(self, *arrays: Array) -> tuple[Array, Array]:
        one = super().basis_terms(*arrays)[self.kept]
        return one, np.zeros_like(one)


def without_the_identity(gradients: Gradients, *given: Any) -> Gradients:
    return gradients._replace(x=gradients.x - np.asarray(given[COTANGENT], gradients.x.dtype))


def x_by_the_forward_map(gradients: Gradients, *given: Any) -> Gradients:
    """The cotangent of x goes through G, not through its transpose."""
    return gradients._replace(x=TransposedMixing().adapter_vjp(*given).x)


def averaged_over_tokens(gradients: Gradients, x: Array, *_: Any) -> Gradients:
    tokens = np.float32(max(1, x.size // x.shape[-1]))
    return Gradients(gradients.x, *(gradient / tokens for gradient in gradients[1:]))


class ProjectionCotangentOfOnes(NumpyPort):
    """The gradient of ``M.sum()``, whatever the cotangent is: 0, as this sum does not depend on S."""

    def correction_vjp(self, plain: Array, grad_mixing: Array) -> Array:
        return super().correction_vjp(plain, np.ones_like(grad_mixing))


class AutodiffOfDetachedMixing(NumpyPort):
    """Automatic differentiation whose graph was cut at M, beside a closed form that is right."""

    def adapter_autodiff(self, *inputs: Any) -> Gradients:
        return DetachedMixing().adapter_vjp(*inputs)


class ClosedFormUnlikeAutodiff(DetachedLargest):
    """A closed form that is wrong, beside automatic differentiation that is right."""

    def adapter_autodiff(self, *inputs: Any) -> Gradients:
        return NumpyPort().adapter_vjp(*inputs)


_ELSEWHERE = (PROJECTION, ADAPTER, STATE_FILE)
_PROJECTION = ("test_projection_gradient_agrees_with_the_reference",)
_ADAPTER = ("test_adapter_gradient_agrees_with_the_reference",)
_BY_ITSELF = ("test_forward_and_gradient_of_the_port_are_adjoint",)
_AUTODIFF = ("test_closed_form_agrees_with_the_ports_own_autodiff",)
_DIFFERENCES = ("test_gradient_agrees_with_differences_of_the_port",)
_LOST = tuple(
    Mutant(
        f"zero_gradient_of_{name}",
        partial(Returns, VJP, partial(without, name)),
        (*_ADAPTER, "test_every_input_gets_a_gradient"),
        _ELSEWHERE,
    )
    for name in Gradients._fields
)
MUTANTS = _LOST + tuple(
    Mutant(name, factory, caught_by, _ELSEWHERE)
    for name, factory, caught_by in (
        ("detached_mixing", DetachedMixing, (*_PROJECTION, *_ADAPTER, "test_golden_projection_gradient")),
        ("detached_correction", DetachedCorrection, _PROJECTION),
        ("detached_largest", DetachedLargest, _PROJECTION),
        ("last_argmax", LastArgmax, ("test_largest_row_sum_takes_the_first_argmax_of_a_tie",)),
        ("largest_shared_by_ties", LargestSharedByTies, ("test_largest_row_sum_takes_the_first_argmax_of_a_tie",)),
        ("largest_shared_by_all", LargestSharedByAll, _PROJECTION),
        ("truncated_back_propagation", TruncatedBackPropagation, _PROJECTION),
        ("last_matrix_for_every_step", LastMatrixForEveryStep, _PROJECTION),
        ("implicit_gradient", ImplicitGradient, _PROJECTION),
        (
            "no_gradient_through_kappa",
            NoGradientThroughKappa,
            (*_ADAPTER, "test_gradient_of_the_basis_has_no_part_along_the_basis"),
        ),
        ("sigmoid_derivative_cancels", SigmoidDerivativeCancels, ("test_every_gate",)),
        ("basis_by_the_write_out_alone", partial(OneTermOfTheBasis, 0), (*_ADAPTER, *_DIFFERENCES)),
        ("basis_by_the_read_in_alone", partial(OneTermOfTheBasis, 1), (*_ADAPTER, *_DIFFERENCES)),
        ("no_identity_in_x", partial(Returns, VJP, without_the_identity), (*_ADAPTER, *_BY_ITSELF)),
        ("x_by_the_forward_map", partial(Returns, VJP, x_by_the_forward_map), (*_ADAPTER, *_BY_ITSELF)),
        (
            "averaged_over_tokens",
            partial(Returns, VJP, averaged_over_tokens),
            (*_ADAPTER, "test_leading_axes_are_summed_for_the_parameters"),
        ),
        ("cotangent_of_ones", partial(Given, VJP, argument(COTANGENT, np.ones_like)), (*_ADAPTER, *_BY_ITSELF)),
        ("autodiff_of_detached_mixing", AutodiffOfDetachedMixing, _AUTODIFF),
        ("closed_form_unlike_autodiff", ClosedFormUnlikeAutodiff, _AUTODIFF),
        ("projection_cotangent_of_ones", ProjectionCotangentOfOnes, (*_PROJECTION, *_DIFFERENCES)),
    )
)
