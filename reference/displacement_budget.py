"""Displacement budget: a state is kept within a distance of an anchor, by pulling it back along a straight segment."""

from collections.abc import Callable
from numbers import Real

from reference.adapter import AdapterParameters, checked_parameters
from reference.certificates import displacement
from reference.errors import ConfigError, DegenerateBasisError, ShapeError

BISECTIONS = 20


def limit_displacement(
    anchor: AdapterParameters, parameters: AdapterParameters, delta: float, iterations: int = 20
) -> tuple[AdapterParameters, float]:
    """``theta_t = anchor + t (parameters - anchor)`` with ``||G_theta_t - G_anchor||_2 <= delta``, and the fraction t.

    t = 1 if ``parameters`` is within ``delta`` of the anchor: its values are then returned bit for bit. Otherwise t is
    the last point found inside by 20 bisections of [0, 1], and t + 2^-20 is outside. A point where A = 0 is outside.

    Args:
        anchor: the state of one layer to stay near: S (n, n), gamma (), A (n, r, d).
        parameters: the state of the same layer to limit, in the same shapes.
        delta: largest spectral norm of the change, > 0; infinity limits nothing.
        iterations: K.

    Returns:
        (limited, t): S (n, n), gamma (), A (n, r, d) in float64, and t in [0, 1].

    Raises:
        ConfigError: ``delta`` is not a number > 0. ShapeError: the two states differ in size.
        NonFiniteError: a parameter is NaN or infinite. DegenerateBasisError: the anchor's A is zero.

    Clauses: BUDGET-1, BUDGET-2, BUDGET-3.
    """
    check_budget("delta", delta)
    start, end = checked_states(anchor, parameters)

    def is_within(state: AdapterParameters) -> bool:
        try:
            return displacement(start, state, iterations) <= delta
        except DegenerateBasisError:
            return False

    displacement(start, start, iterations)  # refuses an anchor with A = 0
    return last_inside(start, end, is_within)


def last_inside(
    start: AdapterParameters, end: AdapterParameters, is_within: Callable[[AdapterParameters], bool]
) -> tuple[AdapterParameters, float]:
    """``end`` and 1 if it is within; else the last point found inside by bisection of the segment, ``start`` counting
    as within, and its t. Clauses: BUDGET-2, DATA-3."""
    if is_within(end):
        return end, 1.0
    inside, outside = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        if is_within(_interpolate(start, end, middle)):
            inside = middle
        else:
            outside = middle
    return _interpolate(start, end, inside), inside


def check_budget(field: str, budget: float) -> None:
    """Raise ConfigError unless ``budget`` is a number > 0; infinity is one. Clauses: BUDGET-3, DATA-5."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not budget > 0:
        raise ConfigError(
            field, got=repr(budget), allowed="a number > 0", remedy="to hold the adapter still, freeze its parameters"
        )


def _interpolate(start: AdapterParameters, end: AdapterParameters, fraction: float) -> AdapterParameters:
    return AdapterParameters(*(a + fraction * (b - a) for a, b in zip(start, end, strict=True)))


def checked_states(
    anchor: AdapterParameters, parameters: AdapterParameters
) -> tuple[AdapterParameters, AdapterParameters]:
    """Both in float64. Raises: ShapeError if they differ in size, and as ``checked_parameters``. Clause: BUDGET-3."""
    start, end = checked_parameters(anchor), checked_parameters(parameters)
    for field, a, b in zip(AdapterParameters._fields, start, end, strict=True):
        if a.shape != b.shape:
            raise ShapeError(
                field,
                got=f"{b.shape}, and {a.shape} in the anchor",
                allowed="(n, n), () and (n, r, d), with the same sizes in both states",
                remedy="take the anchor from this run, after its sizes were chosen",
            )
    return start, end
