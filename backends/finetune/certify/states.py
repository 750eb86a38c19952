"""The stored states of the shared CRMA, measured again: in float32 as used, and in float64 by the reference."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

import reference
from backends.finetune.certify.check import (
    BUDGET_ROUNDING,
    LOG_ROUNDING,
    REFERENCE_ROUNDING,
    ROUNDING,
    Check,
    at_most,
    holds,
    largest,
    not_promised,
)
from backends.finetune.methods.method import Condition
from backends.finetune.runs.records import PhaseRecord
from backends.torch.certificates import certificate, displacement
from backends.torch.state import StateFile
from reference.errors import CRMAError

Worst = list[tuple[float, str]]


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
    condition: Condition, seed: int, states: list[StoredState], phases: list[PhaseRecord], budget: float | None
) -> list[Check]:
    """The checks of the ``crma-N`` files of one condition and seed; ``budget`` None: no displacement is promised."""
    if not states:
        return []
    first = states[0].content
    if other := [
        s.name for s in states if s.content.config != first.config or len(s.content.state[1]) != len(first.state[1])
    ]:
        fault = f"{other[0]} has other sizes than {states[0].name}"
        return [holds(condition.name, seed, "stored states measurable", "CERT-1", [fault])]
    try:
        found = [*_bounds(condition.name, seed, states), _as_logged(condition.name, seed, states, phases)]
        if condition.trains_crma == "first-task":
            found.append(_unchanged(condition.name, seed, states))
        return found + _displacements(condition.name, seed, states, budget)
    except CRMAError as error:
        return [holds(condition.name, seed, "stored states measurable", "CERT-1", [str(error)])]


def _bounds(condition: str, seed: int, states: list[StoredState]) -> list[Check]:
    found: tuple[Worst, ...] = ([], [], [], [], [], [])
    sums, norms, values, exact_sums, exact_norms, exact_values = found
    streams = max(state.content.config.streams for state in states)
    for name, _, content in states:
        measured = certificate(content.state, content.config.iterations)
        for worst, per_layer in zip(
            (sums, norms, values), (measured.sum_error, measured.mixing_norm, measured.largest), strict=True
        ):
            layer = int(per_layer.argmax())
            worst.append((float(per_layer[layer]), f"{name}, layer {layer}"))
        for layer, parameters in enumerate(_layers(content)):
            place = f"{name}, layer {layer}"
            mixing = reference.sinkhorn_projection(parameters.mix_logits, content.config.iterations)
            exact_sums.append((float(np.abs([mixing.sum(0) - 1, mixing.sum(1) - 1]).max()), place))
            exact_norms.append((float(np.linalg.norm(mixing, 2)), place))
            exact_values.append((reference.adapter_spectrum(parameters, content.config.iterations)[0], place))
    used, exact = 1 + ROUNDING, 1 + REFERENCE_ROUNDING
    row_sums = "sums of M − 1, stored"
    in_float32 = (
        at_most(condition, seed, row_sums, "SINK-5", largest(sums), ROUNDING)
        if streams <= 16
        else not_promised(condition, seed, row_sums, largest(sums), "float32 is bounded up to 16 streams")
    )
    return [
        in_float32,
        at_most(condition, seed, "norm of M, stored", "SINK-6", largest(norms), used),
        at_most(
            condition,
            seed,
            "norm of adapter, stored",
            "MIX-7, CERT-1",
            largest(values),
            used,
        ),
        at_most(
            condition,
            seed,
            "sums of M − 1, float64",
            "SINK-5",
            largest(exact_sums),
            REFERENCE_ROUNDING,
        ),
        at_most(condition, seed, "norm of M, float64", "SINK-6", largest(exact_norms), exact),
        at_most(
            condition,
            seed,
            "norm of adapter, float64",
            "MIX-7, CERT-1",
            largest(exact_values),
            exact,
        ),
    ]


def _as_logged(condition: str, seed: int, states: list[StoredState], phases: list[PhaseRecord]) -> Check:
    """Each file is the state whose certificate the last step of its phase logged."""
    differences: Worst = []
    for name, phase, content in states:
        log = phases[phase].spectral if phase < len(phases) else None
        if log is None or not log.steps:
            continue
        if log.steps[-1] != len(phases[phase].losses):
            fault = f"the log of phase {phase + 1} ends before its last step, so that nothing says what {name} was"
            return holds(condition, seed, "stored states as logged", "CERT-1, CERT-2", [fault])
        now = certificate(content.state, content.config.iterations)
        pairs = [(float(now.smallest.min()), log.adapter_min[-1]), (float(now.largest.max()), log.adapter_max[-1])]
        logged = log.displacement_max[-1]
        if logged is not None and phase > 0 and states[0].phase == 0:
            anchor = states[0].content
            moved = displacement(anchor.state, content.state, content.config.iterations)
            pairs.append((float(moved.max()), logged))
        differences.append((max(abs(measured - said) for measured, said in pairs), name))
    name = "stored states as logged"
    if not differences:
        return holds(condition, seed, name, "CERT-1, CERT-2", ["no phase logged a certificate at its last step"])
    return at_most(condition, seed, name, "CERT-1, CERT-2", largest(differences), LOG_ROUNDING)


def _unchanged(condition: str, seed: int, states: list[StoredState]) -> Check:
    first = states[0]
    faults = [
        f"{state.name} differs from {first.name} in {field}"
        for state in states[1:]
        for field, one, other in zip(first.content.state._fields, first.content.state, state.content.state, strict=True)
        if one.shape != other.shape or not bool((one == other).all())
    ]
    return holds(condition, seed, "CRMA unchanged", "", faults)


def _displacements(condition: str, seed: int, states: list[StoredState], budget: float | None) -> list[Check]:
    names = ("displacement, stored", "displacement, any two")
    anchored = states[0].phase == 0
    from_anchor: Worst = []
    for name, _, content in states[1:] if anchored else []:
        for layer, pair in enumerate(zip(_layers(states[0].content), _layers(content), strict=True)):
            moved = reference.displacement(*pair, content.config.iterations)
            from_anchor.append((moved, f"{name}, layer {layer}"))
    if budget is None:
        return (
            [not_promised(condition, seed, names[0], largest(from_anchor), "no budget was set")] if from_anchor else []
        )
    if not anchored:
        return [holds(condition, seed, names[0], "BUDGET-1", ["crma-0, the anchor, cannot be read"])]
    between: Worst = []
    for one, other in combinations(states[1:], 2):
        per_layer = displacement(one.content.state, other.content.state, one.content.config.iterations)
        layer = int(per_layer.argmax())
        between.append((float(per_layer[layer]), f"{one.name} and {other.name}, layer {layer}"))
    found = []
    if from_anchor:
        found.append(
            at_most(condition, seed, names[0], "BUDGET-1, CERT-2", largest(from_anchor), budget + BUDGET_ROUNDING)
        )
    if between:
        found.append(
            at_most(condition, seed, names[1], "BUDGET-1, CERT-2", largest(between), 2 * (budget + BUDGET_ROUNDING))
        )
    return found


def _layers(content: StateFile) -> list[reference.AdapterParameters]:
    mix_logits, gate_logits, bases = (tensor.double().numpy() for tensor in content.state)
    return [reference.AdapterParameters(*layer) for layer in zip(mix_logits, gate_logits, bases, strict=True)]
