"""``crma generate``: text from the adapters of a run, the task named or found by the router.

A model's text is printed word for word, but for control characters other than line end and tab, and characters that
turn the direction of writing: these appear as escapes such as ``\\x1b``. ``AdapterRegistry.generate`` has them raw.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.files import TEXT_LIMIT, printable
from backends.finetune.protocols.text_file import read_text
from reference.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from backends.finetune.inference.router import CentroidRouter, Route

ROUTER_NAME = "router.safetensors"


def add_parser(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    parser = commands.add_parser("generate", help="write text with the adapters of a run")
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of `crma finetune`")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    parser.add_argument("--prompt-file", action="append", type=Path, metavar="FILE", help="one prompt: the whole file")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--task", metavar="NAME", help="the task whose adapter answers")
    which.add_argument(
        "--route",
        action="store_true",
        help="let the router of `crma route` choose; out of domain, the bare base model answers, CRMA off as well",
    )
    parser.add_argument("--no-crma", action="store_true", help="bypass the shared CRMA; the LoRA still answers")
    parser.add_argument("--seed", type=int, help="of the run (default: its first)")
    parser.add_argument("--condition", default="modular", help="of the run (default: modular)")
    parser.add_argument("--model", metavar="FOLDER", help="the base model (default: the one of the protocol)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy decoding")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--embedding", metavar="NAME", help="wordllama or minilm (default: the router's own)")
    parser.set_defaults(run=generate)


def generate(options: argparse.Namespace) -> None:
    """Run the command. Raises: the errors of everything it calls."""
    from backends import load_backend
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.training.threads import set_up_framework

    console = Terminal(soft_wrap=True, highlight=False)
    prompts = _prompts(options)
    router = _router(options) if options.route else None  # before the model is loaded: its errors come at once
    set_up_framework(f"torch-{options.device}", options.threads)
    load_backend(f"torch-{options.device}")  # a missing device is one clear error
    registry = AdapterRegistry.from_run(
        options.folder,
        seed=options.seed,
        condition=options.condition,
        device=options.device,
        model=options.model,
        resident=None if options.condition == "o-lora" else 2,
    )
    if registry.random_weights:
        console.print("random weights: the base model has learned nothing, and its text is noise")
    routes = router.route_all(prompts) if router is not None else [None] * len(prompts)
    off = registry.without_crma() if options.no_crma else contextlib.nullcontext()
    with off:
        for prompt, route in zip(prompts, routes, strict=True):
            task = options.task if route is None else route.task
            text = registry.generate(
                prompt,
                task=task,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
            )
            if route is not None and router is not None:
                console.print(_explained(route, router))
            console.print(_adapter_line(registry, task, no_crma=options.no_crma))
            print(printable(text, keep="\n\t"))  # word for word, where rich would spread a tab into spaces


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = list(options.prompt or [])
    prompts += [read_text(file, ConfigError, limit=TEXT_LIMIT).rstrip("\r\n") for file in options.prompt_file or []]
    if not prompts:
        raise ConfigError(
            "--prompt", got="none", allowed="--prompt TEXT or --prompt-file FILE", remedy="give one of the two"
        )
    return prompts


def _router(options: argparse.Namespace) -> CentroidRouter:
    from backends.finetune.inference.embeddings import EMBEDDINGS, load_embedding
    from backends.finetune.inference.router import CentroidRouter
    from backends.finetune.inference.router_file import read_router
    from backends.finetune.runs.links import refuse_links

    refuse_links(options.folder)
    file = options.folder / ROUTER_NAME
    if not file.is_file():
        raise RunFolderError(
            str(options.folder),
            got=f"a run without {ROUTER_NAME}",
            allowed="a run that a router was fitted for",
            remedy=f"crma route {options.folder}",
        )
    own = read_router(file).embedding
    name = options.embedding or next((key for key, kind in EMBEDDINGS.items() if kind.name == own), "wordllama")
    return CentroidRouter.load(file, load_embedding(name))


def _explained(route: Route, router: CentroidRouter) -> str:
    ranked = sorted(route.scores.items(), key=lambda item: -item[1])
    scores = ", ".join(f"{name} {score:.3f}" for name, score in ranked)
    found = route.task or "out of domain"
    return f"routed: {found} (scores: {scores}; margin {route.margin:.3f}, threshold {router.threshold:.3f})"


def _adapter_line(registry: Any, task: str | None, *, no_crma: bool) -> str:
    if task is None:
        return "adapter: none; the bare base model answers, CRMA off"
    crma = "no CRMA in this condition" if registry.shared is None else f"CRMA {'off' if no_crma else 'on'}"
    return f"adapter: {task} (seed {registry.seed}), {crma}"
