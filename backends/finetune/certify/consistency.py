"""What the program's own way of writing a run makes certain: a record or a file that breaks it was not written by it.

None of these rules needs a model or a GPU: they compare the records with the protocol, with each other and with the
files. So they also find a folder in which every digest was computed anew after a change.
"""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from backends.finetune.certify.check import THE_RUN, Check, Subject
from backends.finetune.methods.conditions import parse_condition
from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.records import PhaseRecord, SpectralLog
from backends.finetune.runs.results import RunResults

#: A norm is computed from a matrix whose rows and columns sum to 1 up to rounding, and is therefore never below it.
_BELOW_ONE = 1e-6


def protocol_of(config: dict[str, Any]) -> tuple[Protocol | None, list[str]]:
    """The protocol of a run record, or what is wrong with it."""
    try:
        return Protocol.model_validate(config), []
    except ValidationError as error:
        first = error.errors()[0]
        return None, [f"results.jsonl: config.{'.'.join(map(str, first['loc']))}: {first['msg']}"]


def run_consistent(results: RunResults, protocol: Protocol) -> Check:
    """Every record speaks of the conditions, seeds, tasks and counts of the protocol, and of the same batches."""
    return THE_RUN.holds("records agree with the protocol", "CL-1", _run_faults(results, protocol))


def _run_faults(results: RunResults, protocol: Protocol) -> Iterator[str]:
    for condition, seed, phase in results.phases:
        if phase >= len(results.phases_of(condition, seed)):
            yield f"{condition}, seed {seed}: phase {phase + 1} is recorded and an earlier one is not"
    yield from _of_the_data(results)
    for seed in results.seeds:
        if (protocol.transfer or protocol.canaries) and seed not in results.base:
            yield f"seed {seed}: the bare base model was to be measured and was not"
    for seed, base in results.base.items():
        if seed not in results.seeds or list(base.holdout) != results.tasks:
            yield f"seed {seed}: the bare base model on {list(base.holdout)}"
        yield from (f"seed {seed}: bare base model, {fault}" for fault in _losses(base.holdout))
    for (condition, seed), panel in results.panels.items():
        place = f"panel of {condition}, seed {seed}"
        asked = [task for task in results.tasks for _ in range(protocol.panel)]
        if panel.tasks != asked:
            yield f"{place}: {len(panel.tasks)} questions, the protocol asks {len(asked)}, task by task"
        if condition not in results.conditions or not _has_crma(condition):
            yield f"{place}: there is no CRMA to bypass"
        if len(results.phases_of(condition, seed)) < len(results.tasks):
            yield f"{place}: it is asked after the last phase, which is not recorded"
    for condition in results.conditions if protocol.panel else ():
        for seed in results.complete_seeds(condition):
            if _has_crma(condition) and (condition, seed) not in results.panels:
                yield f"{condition}, seed {seed}: the panel is missing"


def _of_the_data(results: RunResults) -> Iterator[str]:
    """Steps and tokens of a phase depend on its data alone; experience replay adds tokens to those of the data."""
    for seed in results.seeds:
        for phase in range(len(results.tasks)):
            steps, tokens = {}, {}
            for name in results.conditions:
                if (record := results.phases.get((name, seed, phase))) and (condition := _known(name)):
                    steps[name] = len(record.losses) / condition.epochs
                    if phase == 0 or condition.method.memory != "joined":
                        tokens[name] = record.tokens / condition.epochs
            for unit, counts in (("steps", steps), ("tokens", tokens)):
                if len(set(counts.values())) > 1:
                    yield f"seed {seed}, phase {phase + 1}: {unit} differ between conditions: {counts}"


def _known(name: str) -> Condition | None:
    try:
        return parse_condition(name)
    except ValueError:
        return None


def _has_crma(name: str) -> bool:
    condition = _known(name)
    return condition is not None and condition.crma != "none"


def record_consistent(
    results: RunResults, protocol: Protocol, condition: Condition, seed: int, values: dict[str, list[int]]
) -> Check:
    """Each phase's record is one that its training writes.

    Args:
        values: by kind of parameters ("lora", "crma", "full"), how many values the file of each phase holds, where it
            is there.
    """
    faults: list[str] = []
    records = results.phases_of(condition.name, seed)
    for record in records:
        found = list(_phase_faults(record, results, protocol, condition))
        if record.parameters != records[0].parameters:
            found.append(f"parameters {record.parameters}, in the first phase {records[0].parameters}")
        faults += [f"phase {record.phase + 1}: {fault}" for fault in found]
    for kind, counts in values.items() if records else ():
        said = records[0].parameters.get(kind)
        faults += [f"{said} parameters of {kind}, while a file holds {count}" for count in counts if count != said]
    return Subject(condition.name, seed).holds("records as training writes them", "CL-1, CL-7", faults)


def _phase_faults(record: PhaseRecord, results: RunResults, protocol: Protocol, condition: Condition) -> Iterator[str]:
    steps = len(record.losses)
    if set(record.holdout) != set(results.tasks[: record.phase + 1]):
        yield f"holdout losses of {sorted(record.holdout)}"
    for name, norms in record.gradient_norms.items():
        if len(norms) != steps or any(norm < 0 for norm in norms):
            yield f"{len(norms)} gradient norms of {name}, some below 0, or other than the {steps} steps"
    if record.seconds < 0 or record.tokens < steps:
        yield f"{record.tokens} tokens in {record.seconds} seconds"
    yield from _losses(record.holdout)
    yield from _text_faults(record, results)
    if (record.before is not None) != protocol.transfer:
        yield f"a loss before the phase of {record.before}, with transfer = {protocol.transfer}"
    base = results.base.get(record.seed)
    if condition.name == "frozen" and record.before is not None and base is not None:
        bare = base.holdout.get(record.task)
        if bare is None or not math.isclose(record.before, bare, rel_tol=1e-6):
            yield f"a fresh LoRA adds nothing, yet the loss before is {record.before}, that of the bare model {bare}"
    for task, share in record.exact_match.items():
        recalled = share * protocol.canaries
        if protocol.canaries == 0 or not 0 <= share <= 1 or abs(recalled - round(recalled)) > 1e-6:
            yield f"exact match {share} of {task}, with {protocol.canaries} canaries"
    if condition.crma == "none":
        if record.spectral is not None:
            yield "a spectrum, where there is no CRMA"
    elif record.spectral is None:
        yield "no spectrum"
    else:
        yield from _log_faults(record.spectral, record, protocol.crma.log_every, condition)


def _text_faults(record: PhaseRecord, results: RunResults) -> Iterator[str]:
    """The losses of the texts give the loss of their task."""
    for task, losses in record.text_losses.items():
        own = results.phases.get((record.condition, record.seed, results.tasks.index(task)))
        tokens = own.answer_tokens if own else []
        found = math.fsum(losses) / sum(tokens) if sum(tokens) and len(tokens) == len(losses) else math.nan
        if not math.isclose(found, record.holdout[task], rel_tol=1e-9):
            yield (
                f"{len(losses)} texts of {task} with a mean loss of {found:g}, while that of the task is recorded as "
                f"{record.holdout[task]:g}"
            )


def _log_faults(log: SpectralLog, record: PhaseRecord, every: int, condition: Condition) -> Iterator[str]:
    steps = len(record.losses)
    expected = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    if log.steps != expected:
        missing = sorted(set(expected) ^ set(log.steps))
        yield f"the spectrum is logged every {every} steps and at the last, but step(s) {missing[:5]} differ"
    for low, high, name in (
        (log.norm_min, log.norm_max, "norm of M"),
        (log.adapter_min, log.adapter_max, "singular value of the adapter"),
        (log.displacement_min, log.displacement_max, "displacement"),
    ):
        pairs = [(a, b) for a, b in zip(low, high, strict=False) if a is not None and b is not None]
        if any(a > b or a < 0 for a, b in pairs):
            yield f"a smallest {name} above the largest, or below 0"
    if condition.crma == "doubly-stochastic":
        if any(norm < 1 - _BELOW_ONE for norm in log.norm_max + log.norm_min):
            yield "a norm of M below 1, which no matrix with row and column sums of 1 has"
        if any((moved is None) != (record.phase == 0) for moved in log.displacement_max):
            yield "a displacement in the first phase, or none in a later one"
    measured = record.phase > 0 and condition.data_budget is not None
    if any((seen is not None) != measured for seen in log.data_displacement_max):
        yield "a data displacement where there is no data budget or no earlier task, or none where there is"


def _losses(holdout: dict[str, float]) -> Iterator[str]:
    yield from (f"holdout loss {loss:g} of {task}" for task, loss in holdout.items() if not loss > 0)
