"""The session: tasks in sequence, for every seed and condition, safe to interrupt at any point."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

from backends.finetune.engines.engine import EngineFactory
from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import Protocol
from backends.finetune.runs.results import RunResults, read_results
from backends.finetune.runs.run_folder import RunFolder
from backends.finetune.tasks.job import Job
from backends.finetune.tasks.task import Task
from backends.finetune.training.branch import Branch
from backends.finetune.training.progress import Progress
from backends.finetune.training.tensorboard import NO_LOG, Log


def run_session(
    protocol: Protocol,
    tasks: Mapping[int, Sequence[Task]],
    model_path: Path,
    make_engine: EngineFactory,
    folder: RunFolder,
    progress: Progress,
    log: Log = NO_LOG,
) -> RunResults:
    """Run every (seed, condition) of ``protocol`` that ``folder`` does not hold yet, phase by phase.

    Args:
        protocol: what to do. tasks: per seed, the tasks in order. model_path: base model folder.
        make_engine: of the backend. folder: locked and claimed by the caller. progress: shows the advance.
        log: takes every step's figures, for TensorBoard.

    Returns:
        All results of the folder.

    A phase that was interrupted continues from its last checkpoint; the final adapters have the same bits as those
    of an uninterrupted run on the same machine with as many threads. Nothing is drawn from a generator with a state:
    every draw is a function of seed, phase and step, so the position in the data is all that a checkpoint has to know.
    Source: paper section 6.1. Clause: CL-5.
    """

    def branch(condition: Condition, seed: int) -> Branch:
        job = Job(model_path, protocol, condition, seed, tasks[seed])
        return Branch(job, make_engine(job), folder, progress, log)

    for seed in protocol.seeds:
        if (protocol.transfer or protocol.canaries) and seed not in read_results(folder.results).base:
            branch(protocol.condition("frozen"), seed).measure_base()
            gc.collect()
        for name in protocol.conditions:
            results = read_results(folder.results)
            finished = results.phases_of(name, seed)
            condition = protocol.condition(name)
            panel = protocol.panel > 0 and condition.crma != "none" and (name, seed) not in results.panels
            if len(finished) == len(tasks[seed]):
                folder.forget(seed, name, len(finished))  # killed between its last record and this
            if len(finished) < len(tasks[seed]) or panel:
                branch(condition, seed).run(finished, panel=panel)
                gc.collect()  # a model and its hooks form cycles; two base models at once may not fit
            progress.finish_branch()
    return read_results(folder.results)
