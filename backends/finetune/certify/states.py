"""The stored states of the shared CRMA, measured again: in float32 as used, and in float64 by the reference."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from torch import Tensor

import reference
from backends.finetune.certify.check import (
    LOG_ROUNDING,
    REFERENCE_ROUNDING,
    ROUNDING,
    Check,
    Measured,
    Subject,
)
from backends.finetune.certify.records import displacement_check
from backends.finetune.methods.method import Condition
from backends.finetune.runs.assistant_records import LearnedRecord
from backends.finetune.runs.records import PhaseRecord
from backends.torch.certificates import certificate, displacement
from backends.torch.state import StateFile
from reference.errors import CRMAError

#: what is bounded in a state, by which clauses, and what it would be without rounding
_BOUNDED = {
    "sums of M − 1": ("SINK-5", 0.0),
    "norm of M": ("SINK-6", 1.0),
    "norm of adapter": ("MIX-7, CERT-1", 1.0),
}


class StoredState(NamedTuple):
    """One file: its name, the phase after which it was written (from 0), and its content."""

    name: str
    phase: int
    content: StateFile

    @property
    def values(self) -> int:
        """How many values it holds."""
        return sum(tensor.numel() for tensor in self.content.state)


def state_checks(
    condition: Condition,
    seed: int | None,
    states: list[StoredState],
    phases: Sequence[PhaseRecord | LearnedRecord],
    budget: float | None,
) -> list[Check]:
    """The checks of the ``crma-N`` files of one condition and seed; ``budget`` None: no displacement is promised."""
    if not states:
        return []
    of, first = Subject(condition.name, seed), states[0]
    try:
        for name, _, content in states:
            if content.config != first.content.config or len(content.state[1]) != len(first.content.state[1]):
                fault = f"{name} has other sizes than {first.name}"
                return [of.holds("stored states measurable", "CERT-1", [fault])]
        found = [*_bounds(of, states), _as_logged(of, states, phases)]
        if condition.trains_crma == "first-task":
            found.append(of.holds("CRMA unchanged", "", _changes(states, states[0].content.state._fields)))
        elif condition.basis == "first-task":
            found.append(of.holds("basis unchanged", "DATA-4", _changes(states, ("bases",))))
        return found + _displacements(of, states, budget)
    except CRMAError as error:
        return [of.holds("stored states measurable", "CERT-1", [str(error)])]


def _bounds(of: Subject, states: list[StoredState]) -> list[Check]:
    stored: dict[str, list[Measured]] = {name: [] for name in _BOUNDED}
    exact: dict[str, list[Measured]] = {name: [] for name in _BOUNDED}
    for name, _, content in states:
        iterations = content.config.iterations
        measured = certificate(content.state, iterations)
        for worst, per_layer in zip(
            stored.values(), (measured.sum_error, measured.mixing_norm, measured.largest), strict=True
        ):
            worst.append(_worst_layer(per_layer, name))
        for layer, parameters in enumerate(layers_of(content)):
            mixing = reference.sinkhorn_projection(parameters.mix_logits, iterations)
            values = (
                float(np.abs([mixing.sum(0) - 1, mixing.sum(1) - 1]).max()),
                float(np.linalg.norm(mixing, 2)),
                reference.adapter_spectrum(parameters, iterations)[0],
            )
            for worst, value in zip(exact.values(), values, strict=True):
                worst.append((value, f"{name}, layer {layer}"))
    found = []
    for used, rounding, values_of in (("stored", ROUNDING, stored), ("float64", REFERENCE_ROUNDING, exact)):
        for name, (clauses, ideal) in _BOUNDED.items():
            if used == "stored" and ideal == 0 and states[0].content.config.streams > 16:
                reason = "float32 is bounded up to 16 streams"
                found.append(of.not_promised(f"{name}, {used}", values_of[name], reason))
            else:
                found.append(of.at_most(f"{name}, {used}", clauses, values_of[name], ideal + rounding))
    return found


def _as_logged(of: Subject, states: list[StoredState], phases: Sequence[PhaseRecord | LearnedRecord]) -> Check:
    """Each file is the state whose certificate the last step of its phase logged."""
    check, clauses = "stored states as logged", "CERT-1, CERT-2"
    differences: list[Measured] = []
    for name, phase, content in states:
        log = phases[phase].spectral if phase < len(phases) else None
        if log is None or not log.steps:
            continue
        if log.steps[-1] != len(phases[phase].losses):
            fault = f"the log of phase {phase + 1} ends before its last step, so that nothing says what {name} was"
            return of.holds(check, clauses, [fault])
        now = certificate(content.state, content.config.iterations)
        pairs = [(float(now.smallest.min()), log.adapter_min[-1]), (float(now.largest.max()), log.adapter_max[-1])]
        logged = log.displacement_max[-1]
        if logged is not None and phase > 0 and states[0].phase == 0:
            moved = displacement(states[0].content.state, content.state, content.config.iterations)
            pairs.append((float(moved.max()), logged))
        differences.append((max(abs(measured - said) for measured, said in pairs), name))
    if not differences:
        return of.holds(check, clauses, ["no phase logged a certificate at its last step"])
    return of.at_most(check, clauses, differences, LOG_ROUNDING)


def _changes(states: list[StoredState], fields: Sequence[str]) -> list[str]:
    """What of these fields has other bits than after the first task."""

    def bits(state: StoredState, field: str) -> bytes:
        values: Tensor = getattr(state.content.state, field)
        return values.numpy().tobytes()

    first, *later = states
    return [
        f"{state.name} differs from {first.name} in {field}"
        for state in later
        for field in fields
        if bits(first, field) != bits(state, field)
    ]


def _displacements(of: Subject, states: list[StoredState], budget: float | None) -> list[Check]:
    from_anchor, any_two = "displacement, stored", "displacement, any two"
    anchor, *later = states
    if anchor.phase != 0:
        fault = "crma-0, the anchor, cannot be read"
        return [] if budget is None else [of.holds(from_anchor, "BUDGET-1", [fault])]
    moved = [
        (reference.displacement(*pair, content.config.iterations), f"{name}, layer {layer}")
        for name, _, content in later
        for layer, pair in enumerate(zip(layers_of(anchor.content), layers_of(content), strict=True))
    ]
    if not moved:
        return []
    found = displacement_check(of, from_anchor, "BUDGET-1, CERT-2", moved, budget)
    between = []
    for one, other in combinations(later, 2) if budget is not None else ():
        per_layer = displacement(one.content.state, other.content.state, one.content.config.iterations)
        between.append(_worst_layer(per_layer, f"{one.name} and {other.name}"))
    return found + (displacement_check(of, any_two, "BUDGET-1, CERT-2", between, budget, times=2) if between else [])


def _worst_layer(per_layer: Tensor, where: str) -> Measured:
    layer = int(per_layer.argmax())
    return float(per_layer[layer]), f"{where}, layer {layer}"


def layers_of(content: StateFile) -> list[reference.AdapterParameters]:
    """The parameters of each layer, in float64."""
    mix_logits, gate_logits, bases = (tensor.double().numpy() for tensor in content.state)
    return [reference.AdapterParameters(*layer) for layer in zip(mix_logits, gate_logits, bases, strict=True)]
