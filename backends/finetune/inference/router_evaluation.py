"""How well a router tells tasks apart: confusion matrix, margins, and what becomes of texts of no known task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.finetune.inference.embeddings import Embedding
from backends.finetune.inference.router import REJECT, CentroidRouter

Queries = Mapping[str, Sequence[str]]
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


class Evaluation(NamedTuple):
    """``confusion`` (T, T + 1): rows the true task, columns the routed one, the last column "out of domain".
    ``accuracy``: fraction in the own column. ``nearest_accuracy``: the same without a threshold. ``margins``: QUANTILES
    of how far the true task's score is ahead of the best other one; negative where the router errs."""

    tasks: tuple[str, ...]
    confusion: NDArray[np.int64]
    accuracy: float
    nearest_accuracy: float
    margins: list[float]


class LeftOut(NamedTuple):
    """A router that knows all tasks but ``task``: which fraction of that task's queries it calls out of domain, and
    which fraction of the known tasks' queries it does."""

    task: str
    detected: float
    rejected_in_domain: float


def evaluate(router: CentroidRouter, queries: Queries) -> Evaluation:
    """Route queries whose task is known; they must not be among those that the router was fitted on."""
    tasks = router.tasks
    confusion = np.zeros((len(tasks), len(tasks) + 1), np.int64)
    margins: list[float] = []
    nearest = 0
    for row, task in enumerate(tasks):
        for scores in router.scores(queries[task]):
            route = router.decide(scores)
            confusion[row, len(tasks) if route.task is None else tasks.index(route.task)] += 1
            others = np.delete(scores, row)
            margins.append(float(scores[row] - others.max()) if len(others) else float(scores[row]))
            nearest += int(np.argmax(scores)) == row
    total = max(int(confusion.sum()), 1)
    accuracy = float(np.trace(confusion[:, :-1])) / total
    quantiles = [float(value) for value in np.quantile(margins, QUANTILES)]
    return Evaluation(tasks, confusion, accuracy, nearest / total, quantiles)


def leave_out(fitted_on: Queries, asked: Queries, embed: Embedding, *, reject: float = REJECT) -> list[LeftOut]:
    """Leave each task out of the fit in turn; needs three tasks to be worth something, and two to be possible."""
    embed = Remembering(embed)
    found = []
    for task in fitted_on:
        known = {name: texts for name, texts in fitted_on.items() if name != task}
        router = CentroidRouter.fit(known, embed, reject=reject)
        foreign = [route.task is None for route in router.route_all(asked[task])]
        own = [route.task is None for name in known for route in router.route_all(asked[name])]
        found.append(LeftOut(task, float(np.mean(foreign)), float(np.mean(own))))
    return found


class Remembering:
    """The same embedding, each text computed once."""

    def __init__(self, embed: Embedding) -> None:
        self.name, self._embed, self._known = embed.name, embed, dict[str, NDArray[np.float32]]()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, self._embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])
