"""Displacement budget: a state is kept within a distance of an anchor, by pulling it back along a straight segment."""

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
    check_delta(delta)
    start, end = _checked(anchor, parameters)

    def is_within(fraction: float) -> bool:
        try:
            return displacement(start, _interpolate(start, end, fraction), iterations) <= delta
        except DegenerateBasisError:
            return False

    displacement(start, start, iterations)  # refuses an anchor with A = 0
    if is_within(1.0):
        return end, 1.0
    inside, outside = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        if is_within(middle):
            inside = middle
        else:
            outside = middle
    return _interpolate(start, end, inside), inside


def check_delta(delta: float) -> None:
    """Raise ConfigError unless ``delta`` is a number > 0; infinity is one. Clause: BUDGET-3."""
    if isinstance(delta, bool) or not isinstance(delta, Real) or not delta > 0:
        raise ConfigError(
            "delta", got=repr(delta), allowed="a number > 0", remedy="to hold the adapter still, freeze its parameters"
        )


def _interpolate(start: AdapterParameters, end: AdapterParameters, fraction: float) -> AdapterParameters:
    if fraction == 1.0:  # start + (end - start) need not be end to the last bit
        return end
    return AdapterParameters(*(a + fraction * (b - a) for a, b in zip(start, end, strict=True)))


def _checked(anchor: AdapterParameters, parameters: AdapterParameters) -> tuple[AdapterParameters, AdapterParameters]:
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
