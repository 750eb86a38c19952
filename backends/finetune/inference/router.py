"""CentroidRouter: which task a query belongs to, by its cosine to the mean of each task's training queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.finetune.inference import router_file
from backends.finetune.inference.embeddings import Embedding
from reference.errors import ConfigError, StateFileError, TaskDataError

REJECT = 0.01
CANCELLED = 1e-6  # norm of a mean of unit vectors that says nothing but rounding


class Route(NamedTuple):
    """``task`` is None for a query out of domain; ``scores``: cosine to each task's centroid; ``margin``: by how much
    the best one is ahead of the second (with one task, its score)."""

    task: str | None
    scores: dict[str, float]
    margin: float


class CentroidRouter:
    """Centroids c_t (T, D), of norm 1, and a threshold on the cosine.

    c_t = sum_i e_i / ||sum_i e_i|| over the normalized embeddings e_i of task t's training queries. A query q goes to
    the task with the largest score <q / ||q||, c_t>; below ``threshold`` it belongs to none of them, and so does a text
    whose embedding is zero.

    The threshold is the ``reject`` quantile of the best scores of the training queries, each left out of its own
    centroid: about that fraction of queries like these is turned away. A higher one turns away more of what is foreign
    and more of what is not; what a threshold lets through of foreign texts is measured, not promised
    (``crma route --evaluate``).

    Source: nearest-centroid classification; leaving one out, ours.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        centroids: NDArray[np.float32],
        threshold: float,
        embed: Embedding,
        reject: float = REJECT,
    ) -> None:
        self.tasks, self.centroids, self.threshold = tuple(tasks), centroids, threshold
        self.embed, self.reject = embed, reject

    @classmethod
    def fit(cls, queries: Mapping[str, Sequence[str]], embed: Embedding, *, reject: float = REJECT) -> CentroidRouter:
        """Centroids and threshold from the training queries of each task.

        Raises: ConfigError for a quantile outside [0, 1), TaskDataError for fewer than one task, fewer than two queries
        of one, or queries that embed to nothing.
        """
        if not 0 <= reject < 1:
            raise ConfigError("reject", got=reject, allowed="a fraction in [0, 1)", remedy=f"use {REJECT}")
        if not queries:
            raise TaskDataError("tasks", got="none", allowed="one at least", remedy="train a task first")
        vectors = {}
        for task, texts in queries.items():
            if len(texts) < 2:
                raise TaskDataError(
                    f"queries of {task}",
                    got=len(texts),
                    allowed="two at least: each is scored with the others' centroid",
                    remedy="give more training queries",
                )
            vectors[task] = normalized(embed(texts))
            if not vectors[task].any(axis=-1).all() or np.linalg.norm(vectors[task].mean(0)) < CANCELLED:
                raise TaskDataError(
                    f"queries of {task}",
                    got="one whose embedding is zero, or embeddings whose sum is",
                    allowed="texts with words in them",
                    remedy="remove empty prompts",
                )
        sums = {task: own.sum(0) for task, own in vectors.items()}
        centroids = normalized(np.stack(list(sums.values())))
        best = [
            _best_without_oneself(own, sums[task], np.delete(centroids, index, axis=0))
            for index, (task, own) in enumerate(vectors.items())
        ]
        threshold = float(np.quantile(np.concatenate(best), reject))
        return cls(list(vectors), centroids.astype(np.float32), threshold, embed, reject)

    def route(self, query: str) -> Route:
        """The task of one query."""
        return self.route_all([query])[0]

    def route_all(self, queries: Sequence[str]) -> list[Route]:
        """The task of each query, embedded in one call."""
        return [self.decide(scores) for scores in self.scores(queries)]

    def scores(self, queries: Sequence[str]) -> NDArray[np.float64]:
        """Cosines (N, T); all zero for a text whose embedding is zero."""
        if not queries:
            return np.empty((0, len(self.tasks)))
        vectors = normalized(self.embed([query.strip() for query in queries]))  # as what it was fitted on
        if vectors.shape[1] != self.centroids.shape[1]:
            raise StateFileError(
                "router",
                got=f"centroids of {self.centroids.shape[1]} dimensions",
                allowed=f"{vectors.shape[1]}, as {self.embed.name} has them",
                remedy="fit the router again with crma route",
            )
        return vectors @ self.centroids.T.astype(np.float64)

    def decide(self, scores: NDArray[np.float64]) -> Route:
        """The route of one query's scores (T,)."""
        named = dict(zip(self.tasks, scores.tolist(), strict=True))
        order = np.sort(scores)[::-1]
        margin = float(order[0] - order[1]) if len(order) > 1 else float(order[0])
        within = order[0] >= self.threshold and scores.any()
        return Route(self.tasks[int(np.argmax(scores))] if within else None, named, margin)

    def save(self, path: Path | str) -> None:
        """Write centroids (safetensors) and all else (its metadata), atomically. Raises: DiskSpaceError."""
        content = router_file.RouterContent(self.tasks, self.centroids, self.threshold, self.embed.name, self.reject)
        router_file.write_router(Path(path), content)

    @classmethod
    def load(cls, path: Path | str, embed: Embedding) -> CentroidRouter:
        """Read what :meth:`save` wrote. Raises: StateFileError, also where it was fitted with another embedding."""
        content = router_file.read_router(Path(path))
        if content.embedding != embed.name:
            raise StateFileError(
                str(path),
                got=f"a router fitted with the embedding {content.embedding}",
                allowed=embed.name,
                remedy="name that embedding with --embedding, or fit again with crma route",
            )
        return cls(content.tasks, content.centroids, content.threshold, embed, content.reject)


def normalized(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of norm 1, float64; a row of zeros stays so."""
    rows = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _best_without_oneself(
    own: NDArray[np.float64], total: NDArray[np.float64], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each row of ``own``: its largest cosine to the centroid of the other rows, and to the other tasks'."""
    to_own = (own * normalized(total - own)).sum(axis=-1, keepdims=True)
    return np.concatenate([to_own, own @ others.T], axis=-1).max(axis=-1)
