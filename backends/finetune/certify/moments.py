"""The stored moments of earlier tasks' tokens, and what the stored states make of them: by the reference, float64."""

from collections.abc import Mapping, Sequence

import numpy as np

import reference
from backends.finetune.certify.check import BUDGET_ROUNDING, LOG_ROUNDING, Check, Measured, Subject
from backends.finetune.certify.states import StoredState, layers_of
from backends.finetune.methods.method import Condition
from backends.finetune.runs.assistant_records import LearnedRecord
from backends.finetune.runs.moments_file import Float64
from backends.finetune.runs.records import PhaseRecord
from reference.data_displacement import MOMENT_ROUNDING, checked_moment
from reference.errors import CRMAError

Moments = Mapping[int, tuple[Float64, int]]  # of the tasks up to a phase: totals (layers, n r, n r), tokens


def moment_checks(
    condition: Condition,
    seed: int | None,
    states: Sequence[StoredState],
    moments: Moments,
    phases: Sequence[PhaseRecord | LearnedRecord],
    epochs: Sequence[int],
) -> list[Check]:
    """The checks of the ``moments-N`` files of one condition and seed, and of its states with them.

    Args:
        epochs: how often each training text was read in each of the phases, by which the tokens of a moment are known.
    """
    if condition.data_budget is None or not states or states[0].phase != 0:
        return []
    of, anchor = Subject(condition.name, seed), layers_of(states[0].content)
    seen: list[Measured] = []
    differences: list[Measured] = []
    faults = _other_shapes(anchor, moments)
    if not faults:
        try:
            faults = [*_faults(anchor, moments), *_other_counts(moments, phases, epochs)]
            for name, phase, content in states[1:]:
                if phase - 1 not in moments:
                    faults.append(f"{name}: no moment to measure it with")
                    continue
                totals, count = moments[phase - 1]
                values = []
                for start, state, total in zip(anchor, layers_of(content), totals, strict=True):
                    moment = reference.StreamMoment(total, count)
                    values.append(reference.data_displacement(start, state, moment, content.config.iterations))
                seen += [(value, f"{name}, layer {layer}") for layer, value in enumerate(values)]
                logged = _last_logged(phases[phase]) if phase < len(phases) else None
                differences += [] if logged is None else [(abs(max(values) - logged), name)]
        except CRMAError as error:
            faults.append(str(error))
    found = [of.holds("moments plausible", "DATA-1, DATA-5", faults)]
    bound = condition.data_budget + BUDGET_ROUNDING
    if differences:
        found.append(of.at_most("data displacement as logged", "DATA-2", differences, LOG_ROUNDING))
    return found + ([of.at_most("data displacement, stored", "DATA-2, DATA-3", seen, bound)] if seen else [])


def _last_logged(record: PhaseRecord | LearnedRecord) -> float | None:
    log = record.spectral
    return log.data_displacement_max[-1] if log is not None and log.data_displacement_max else None


def _other_shapes(anchor: Sequence[reference.AdapterParameters], moments: Moments) -> list[str]:
    width = anchor[0].basis[..., 0].size
    wanted = (len(anchor), width, width)
    shapes = {phase: totals.shape for phase, (totals, _) in moments.items()}
    return [f"moments-{phase} of shape {got}, while {wanted} fit" for phase, got in shapes.items() if got != wanted]


def _faults(anchor: Sequence[reference.AdapterParameters], moments: Moments) -> list[str]:
    """What each phase added is a moment of its tokens: a sum of squares, with a trace that ``||A||^2`` bounds."""
    faults = []
    for phase, (totals, tokens) in moments.items():
        before, earlier = moments.get(phase - 1, (np.zeros_like(totals), 0))  # where one is missing, what both added
        count = tokens - earlier
        for layer, (parameters, total) in enumerate(zip(anchor, totals - before, strict=True)):
            checked_moment(reference.StreamMoment(total, count), parameters)
            flat = parameters.basis.reshape(-1, parameters.basis.shape[-1])
            bound = count * float(np.linalg.norm(flat, 2)) ** 2 * (1 + MOMENT_ROUNDING)
            if not 0 < np.trace(total) <= bound:
                fault = f"a trace of {np.trace(total):g} in layer {layer}, while {count} tokens allow {bound:g}"
                faults.append(f"moments-{phase}: {fault}")
    return faults


def _other_counts(moments: Moments, phases: Sequence[PhaseRecord | LearnedRecord], epochs: Sequence[int]) -> list[str]:
    """Where the records say how many tokens and texts a phase had: all tokens but the first of each text count."""
    expected, faults = 0, []
    for record, passes in zip(phases, epochs, strict=True):
        if "train" not in record.texts:
            break
        expected += record.tokens // passes - record.texts["train"].texts
        if record.phase in moments and (count := moments[record.phase][1]) != expected:
            faults.append(f"moments-{record.phase} of {count} tokens, while the records have {expected}")
    return faults
