"""``crma generate``: text from the adapters of a run, the task named or found by the router.

A model's text is printed word for word, but for control characters other than line end and tab, and characters that
turn the direction of writing: these appear as escapes such as ``\\x1b``. ``AdapterRegistry.generate`` has them raw.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backends.files import TEXT_LIMIT, printable
from backends.finetune.cli.options import RunFolder, SeedOfRun, Threads, option
from backends.finetune.protocols.text_file import read_text
from reference.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from backends.finetune.inference.router import CentroidRouter, Route

ROUTER_NAME = "router.safetensors"


def generate(
    folder: RunFolder,
    prompt: Annotated[list[str] | None, option(metavar="TEXT", help="may be given several times")] = None,
    prompt_file: Annotated[list[Path] | None, option(metavar="FILE", help="one prompt: the whole file")] = None,
    task: Annotated[str | None, option(metavar="NAME", help="the task whose adapter answers")] = None,
    route: Annotated[
        bool,
        option(
            "--route",
            help="let the router of `crma route` choose; out of domain, the bare base model answers, CRMA off as well",
        ),
    ] = False,
    no_crma: Annotated[bool, option("--no-crma", help="bypass the shared CRMA; the LoRA still answers")] = False,
    seed: SeedOfRun = None,
    condition: Annotated[str, option(help="of the run (default: modular)")] = "modular",
    model: Annotated[
        str | None, option(metavar="FOLDER", help="the base model (default: the one of the protocol)")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], option()] = "cpu",
    max_new_tokens: Annotated[int, option(metavar="N")] = 64,
    temperature: Annotated[float, option(help="0, the default, is greedy decoding")] = 0.0,
    threads: Threads = None,
    embedding: Annotated[
        str | None, option(metavar="NAME", help="wordllama or minilm (default: the router's own)")
    ] = None,
) -> None:
    """Run the command. Raises: the errors of everything it calls."""
    if route == (task is not None):
        words = "not allowed with argument --task" if route else "one of the arguments --task --route is required"
        raise typer.BadParameter(words, param_hint="--route")
    from backends import load_backend
    from backends.finetune.inference.registry import AdapterRegistry
    from backends.finetune.report.terminal import Terminal
    from backends.finetune.training.threads import set_up_framework

    console = Terminal(soft_wrap=True, highlight=False)
    prompts = _prompts(prompt or [], prompt_file or [])
    router = _router(folder, embedding) if route else None  # before the model is loaded: its errors come at once
    set_up_framework(f"torch-{device}", threads)
    load_backend(f"torch-{device}")  # a missing device is one clear error
    registry = AdapterRegistry.from_run(
        folder,
        seed=seed,
        condition=condition,
        device=device,
        model=model,
        resident=None if condition == "o-lora" else 2,
    )
    if registry.random_weights:
        console.print("random weights: the base model has learned nothing, and its text is noise")
    routes = router.route_all(prompts) if router is not None else [None] * len(prompts)
    with registry.without_crma() if no_crma else contextlib.nullcontext():
        for text, found in zip(prompts, routes, strict=True):
            name = task if found is None else found.task
            answer = registry.generate(text, task=name, max_new_tokens=max_new_tokens, temperature=temperature)
            if found is not None and router is not None:
                console.print(_explained(found, router))
            console.print(_adapter_line(registry, name, no_crma=no_crma))
            if not answer.strip():
                print(empty_answer(registry))
                continue
            print(printable(answer, keep="\n\t"))  # word for word, where rich would spread a tab into spaces


def empty_answer(registry: Any) -> str:
    """What to say of an answer in which there is nothing to read."""
    likely = "it was trained to answer prompts of another form, or with the end at once"
    if not registry.chat.has_template and getattr(registry.tokenizer, "chat_template", None):
        likely = "the model has a chat template, and was trained and asked without it (template none)"
    return f"(empty answer: the model wrote its end at once; likely because {likely})"


def _prompts(given: list[str], files: list[Path]) -> list[str]:
    prompts = given + [read_text(file, ConfigError, limit=TEXT_LIMIT).rstrip("\r\n") for file in files]
    if not prompts:
        raise ConfigError(
            "--prompt", got="none", allowed="--prompt TEXT or --prompt-file FILE", remedy="give one of the two"
        )
    return prompts


def _router(folder: Path, embedding: str | None) -> CentroidRouter:
    from backends.finetune.inference.embeddings import EMBEDDINGS, load_embedding
    from backends.finetune.inference.router import CentroidRouter
    from backends.finetune.inference.router_file import read_router
    from backends.finetune.learning.router import assistant_router
    from backends.finetune.runs.assistant_folder import is_assistant
    from backends.finetune.runs.links import refuse_links

    refuse_links(folder)
    if is_assistant(folder):
        return assistant_router(folder, embedding or "wordllama")
    file = folder / ROUTER_NAME
    if not file.is_file():
        raise RunFolderError(
            str(folder),
            got=f"a run without {ROUTER_NAME}",
            allowed="a run that a router was fitted for",
            remedy=f"crma route {folder}",
        )
    own = read_router(file).embedding
    name = embedding or next((key for key, kind in EMBEDDINGS.items() if kind.name == own), "wordllama")
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
