"""The router on the five domains: accuracy, confusion, margins, foreign texts, and time per query.

    python -m bench.inference_router --out FILE.json

Two kinds of query. Prompts are as the domains pose them, in a few templates for each domain, which give the domain
away. Answers are the texts alone, without any template, and harder. Fitted on the training side, asked with the holdout
side, at the quickstart's size (32 texts a domain) and at 500.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from backends.finetune.inference.embeddings import EMBEDDINGS, Embedding, load_embedding
from backends.finetune.inference.router import CentroidRouter
from backends.finetune.inference.router_evaluation import QUANTILES, Remembering, evaluate, leave_out
from backends.finetune.inference.run_queries import queries_of
from backends.finetune.tasks.domains import DOMAINS, load_domain
from bench import program
from bench.machine import load, machine_kind, versions
from bench.training_step import quartiles, seconds

Texts = dict[str, list[str]]


def domain_queries(train: int, holdout: int, seed: int) -> dict[str, tuple[Texts, Texts]]:
    """Per kind of query: those to fit on and those to ask, by domain."""
    tasks = [load_domain(name, train=train, holdout=holdout, seed=seed) for name in DOMAINS]
    sides = [{task.name: getattr(task, side) for task in tasks} for side in ("train", "holdout")]
    prompts = [{name: queries_of(examples) for name, examples in side.items()} for side in sides]
    answers = [{name: [one.response.strip() for one in examples] for name, examples in side.items()} for side in sides]
    return {"prompts": (prompts[0], prompts[1]), "answers": (answers[0], answers[1])}


def quality(fitted_on: Texts, asked: Texts, embed: Embedding, reject: float) -> dict[str, Any]:
    """The figures of one router."""
    router = CentroidRouter.fit(fitted_on, embed, reject=reject)
    found = evaluate(router, asked)
    return {
        "accuracy": found.accuracy,
        "nearest_accuracy": found.nearest_accuracy,
        "threshold": router.threshold,
        "rejected_in_domain": float(found.confusion[:, -1].sum() / found.confusion.sum()),
        "confusion": dict(zip(found.tasks, found.confusion.tolist(), strict=True)),
        "margin_quantiles": dict(zip(map(str, QUANTILES), found.margins, strict=True)),
        "left_out": {left.task: left._asdict() for left in leave_out(fitted_on, asked, embed, reject=reject)},
    }


def query_seconds(router: CentroidRouter, queries: Sequence[str], rounds: int) -> dict[str, float]:
    """Embedding and decision of one query at a time."""
    times = [seconds(partial(router.route, queries[index % len(queries)])) for index in range(rounds + 3)]
    return quartiles(times[3:])


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": machine_kind("cpu"),
        "versions": versions(),
        "load": f"other work ran on the machine: load average {load()}",
        "columns": [*DOMAINS, "out of domain"],
        "holdout_per_domain": options.holdout,
        "seed": options.seed,
    }
    for name in options.embedding:
        embed = load_embedding(name)
        of_embedding: dict[str, Any] = {"model": embed.name}
        remembering = Remembering(embed)
        for train in options.train:
            for kind, (fitted_on, asked) in domain_queries(train, options.holdout, options.seed).items():
                for reject in options.reject:
                    figures = quality(fitted_on, asked, remembering, reject)
                    of_embedding[f"{kind}, {train} a domain, reject {reject:g}"] = figures
                if kind == "prompts" and train == options.train[0]:
                    router = CentroidRouter.fit(fitted_on, embed)
                    queries = [text for texts in asked.values() for text in texts]
                    of_embedding["seconds_per_query"] = query_seconds(router, queries, options.rounds)
        result[name] = of_embedding
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it could be measured, 2 if not."""
    parser = program.parser("inference_router", __doc__)
    parser.add_argument("--embedding", nargs="+", default=list(EMBEDDINGS), choices=list(EMBEDDINGS))
    parser.add_argument("--train", type=int, nargs="+", default=[32, 500], help="texts of each domain to fit on")
    parser.add_argument("--holdout", type=int, default=100, help="texts of each domain to ask")
    parser.add_argument("--reject", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100, help="queries that are timed")
    options = parser.parse_args(arguments)
    return program.measure("inference_router", options, partial(measured, options))


if __name__ == "__main__":
    raise SystemExit(main())
