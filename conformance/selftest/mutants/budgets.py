"""Faults of budgets: what is limited, how far back, by which measure, and what is taken for one."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Limited, Moment
from conformance.selftest.mutants.around import Given, Returns
from conformance.selftest.mutants.base import ADAPTER, PROJECTION, Mutant
from conformance.selftest.port import Array, NumpyPort

LIMIT, LIMIT_SEEN, MOMENT = ("limit_displacement",), ("limit_data_displacement",), ("stream_moment",)


def twice_the_budget(*arguments: Any) -> tuple[Any, ...]:
    *others, budget, iterations = arguments
    return *others, 2 * budget, iterations


def any_budget(*arguments: Any) -> tuple[Any, ...]:
    *others, budget, iterations = arguments
    is_number = isinstance(budget, (int, float)) and budget == budget
    return *others, (max(float(abs(budget)), 1e-6) if is_number else 1.0), iterations


def back_to_the_anchor(limited: Limited, *arguments: Any) -> Limited:
    return limited if limited.fraction == 1 else Limited._make([*map(np.array, arguments[:3]), 0.0])


def with_its_own_basis(limited: Limited, *arguments: Any) -> Limited:
    return limited._replace(basis=np.array(arguments[5]))


def rounded_though_inside(limited: Limited, *arguments: Any) -> Limited:
    logits = limited.mix_logits
    return limited._replace(mix_logits=logits + np.spacing(logits)) if limited.fraction == 1 else limited


class InProportion(NumpyPort):
    """Goes back by the share of the budget in the displacement, as if that grew in proportion along the segment."""

    def limit_displacement(self, *arguments: Any) -> Limited:
        from reference import AdapterParameters, displacement

        *states, delta, iterations = arguments
        right = super().limit_displacement(*arguments)
        anchor, moved = AdapterParameters(*states[:3]), AdapterParameters(*states[3:])
        if right.fraction == 1:
            return right
        share = delta / displacement(anchor, moved, iterations)
        return self.stored(Limited._make([*(a + share * (b - a) for a, b in zip(anchor, moved, strict=True)), share]))


class WorstCaseForWhatIsSeen(NumpyPort):
    """The data budget kept by the displacement: safe, and much too narrow."""

    def limit_data_displacement(self, *arguments: Any) -> Limited:
        right = super().limit_data_displacement(*arguments)
        *states, _, _, epsilon, iterations = arguments
        return right if right.fraction == 1 else self.limit_displacement(*states, epsilon, iterations)


def without_tokens_of_zeros(moment: Moment, x: Array, basis: Array) -> Moment:
    return Moment(moment.total, int(np.any(x, axis=-1).sum()))


def relative_to_the_norm_once(moment: Moment, x: Array, basis: Array) -> Moment:
    tokens = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    streams = tokens @ np.asarray(basis, np.float64).reshape(-1, x.shape[-1]).T
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    return Moment((streams / np.where(norms > 0, norms, 1.0)).T @ streams, moment.tokens)


def one_token(*arguments: Any) -> tuple[Any, ...]:
    *others, count, epsilon, iterations = arguments
    return *others, min(count, 1), epsilon, iterations


def with_the_anchors_basis(*arguments: Any) -> tuple[Any, ...]:
    return *arguments[:5], arguments[2], *arguments[6:]


def any_sum(*arguments: Any) -> tuple[Any, ...]:
    *states, total, tokens, epsilon, iterations = arguments
    if total.ndim == 2 and total.shape[0] == total.shape[1] and np.isfinite(total).all():
        values, vectors = np.linalg.eigh((total + total.T) / 2)
        total = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return *states, total, tokens, epsilon, iterations


_EDGE = ("test_a_state_beyond_its_budget_is_pulled_back_to_its_edge",)
_SEEN_EDGE = ("test_a_state_beyond_its_data_budget_is_pulled_back_to_its_edge",)
_MOMENT = ("test_a_moment_is_the_sum_over_tokens_whatever_their_size",)
_INSIDE = ("test_a_state_within_its_budget_stays_as_it_is",)
_REFUSED = ("test_what_is_no_budget_and_what_is_no_state_is_refused",)
_NO_MOMENT = ("test_what_is_no_moment_is_refused",)
_OTHER_BASIS = ("test_a_state_with_another_basis_than_its_anchor_is_refused",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, (PROJECTION, ADAPTER))
    for name, factory, caught_by in (
        ("limits_to_twice_the_budget", partial(Given, LIMIT, twice_the_budget), _EDGE),
        ("limits_back_to_the_anchor", partial(Returns, LIMIT, back_to_the_anchor), _EDGE),
        ("limits_all_but_the_basis", partial(Returns, LIMIT, with_its_own_basis), _EDGE),
        ("limits_in_proportion", InProportion, _EDGE),
        ("limits_what_is_inside", partial(Returns, LIMIT, rounded_though_inside), _INSIDE),
        ("takes_any_budget", partial(Given, LIMIT, any_budget), _REFUSED),
        ("data_budget_by_the_worst_case", WorstCaseForWhatIsSeen, _SEEN_EDGE),
        ("data_budget_of_the_sum", partial(Given, LIMIT_SEEN, one_token), _SEEN_EDGE),
        ("data_budget_with_any_basis", partial(Given, LIMIT_SEEN, with_the_anchors_basis), _OTHER_BASIS),
        ("data_budget_of_any_sum", partial(Given, LIMIT_SEEN, any_sum), _NO_MOMENT),
        ("moment_without_tokens_of_zeros", partial(Returns, MOMENT, without_tokens_of_zeros), _MOMENT),
        ("moment_relative_to_the_norm_once", partial(Returns, MOMENT, relative_to_the_norm_once), _MOMENT),
    )
)
