"""Benchmarks of lm-evaluation-harness on an assistant or a run: the bare model, the LoRA alone, the LoRA with CRMA."""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from backends import load_backend
from backends.files import TEXT_LIMIT
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.run_adapters import run_adapters
from backends.finetune.models.memory_errors import memory_errors
from backends.finetune.protocols.text_file import read_text
from backends.finetune.report.page import write_file
from backends.finetune.report.pictures.evaluation import draw_evaluation
from backends.finetune.runs.evaluation_record import BARE, BOTH, LORA, Evaluation, Row, Score
from backends.finetune.training.run_identity import machine_of, versions_of
from backends.finetune.training.threads import set_up_framework
from reference.errors import ConfigError, CRMAError, MissingPackageError, TaskDataError

RUN_CODE = "if you trust it, add --run-code"


def evaluate(
    folder: Path | str,
    task: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    model: str | Path | None = None,
    seed: int | None = None,
    condition: str = "modular",
    threads: int | None = None,
    run_code: bool = False,
    out: Path | str | None = None,
) -> Evaluation:
    """Run benchmarks with the adapters of ``task``, and write a JSON file with a picture beside it.

    Args:
        folder: an assistant, or a run. tasks: names of lm-eval, and .yaml files of your own in its format.
        limit: texts of each benchmark at most. device: "cpu" or "cuda". model: where the base model lies now.
        seed, condition: of a run. run_code: let .yaml files name Python functions, benchmarks fetch the code of their
            metrics, and both run it. out: the JSON file; by default ``evaluation-TASK.json`` in the folder.

    Prompts are built by the chat template that the folder was trained with, if any, for the bare model as well. lm-eval
    sets the seeds of ``random``, NumPy and PyTorch.

    Raises: MissingPackageError; ConfigError for an unknown name or a wrong number; TaskDataError for a .yaml file or
    data that cannot be read, or that would run code; RunFolderError, ModelError, OutOfMemoryError.
    Clauses: ERR-1, ERR-2. Source: paper section 6.1.4, the inference toggle; the benchmarks by lm-eval.
    """
    for option, number in (("--limit", 1 if limit is None else limit), ("--batch-size", batch_size)):
        if number < 1:
            raise ConfigError(option, got=number, allowed="an integer >= 1", remedy="leave it out")
    file = file_of(folder, task, out)
    run = run_adapters(folder, seed=seed, condition=condition)
    if task not in run.tasks:
        raise ConfigError("--task", got=repr(task), allowed=", ".join(run.tasks), remedy="name one of these")
    backend = f"torch-{device}"
    used = set_up_framework(backend, threads)
    load_backend(backend)  # a missing device is one clear error
    _require_packages()
    with nullcontext(lambda: None) if run_code else _no_foreign_code() as check:
        benchmarks = _load(tasks, run_code, check)
        registry = AdapterRegistry.from_run(folder, seed=seed, condition=condition, device=device, model=model)
        registry.use(task)  # a damaged file is an error before anything is measured
        found = _measure(registry, task, benchmarks, limit=limit, batch_size=batch_size, run_code=run_code)
    evaluation = Evaluation(
        task=task,
        model=run.model,
        random_weights=run.random_weights,
        precision=str(registry.model.dtype).removeprefix("torch."),
        quantization=run.protocol.quantization,
        condition=run.condition.name,
        seed=run.seed,
        chat_template=registry.chat.has_template,
        benchmarks=[Path(name).name for name in tasks],
        limit=limit,
        batch_size=batch_size,
        backend=backend,
        machine=machine_of(used),
        versions=versions_of(backend) | {name: importlib.metadata.version(name) for name in ("lm_eval", "datasets")},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=_rows(found),
    )
    write_file(file, evaluation.model_dump_json(indent=2).encode() + b"\n")
    write_file(file.with_suffix(".png"), draw_evaluation(evaluation))
    return evaluation


def file_of(folder: Path | str, task: str, out: Path | str | None = None) -> Path:
    """Where an evaluation is written, its picture beside it. Raises: ConfigError."""
    name = re.sub(r"[^\w.-]+", "_", task)  # a task's name may hold what a file's may not
    file = Path(folder) / f"evaluation-{name}.json" if out is None else Path(out)
    if file.suffix != ".json":
        raise ConfigError("--out", got=str(file), allowed="a name that ends in .json", remedy=f"{file}.json")
    return file


def _measure(
    registry: AdapterRegistry, task: str, benchmarks: list[Any], *, limit: int | None, batch_size: int, run_code: bool
) -> dict[str, Any]:
    """What lm-eval returns, by what answered."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    has_template = registry.chat.has_template
    if has_template:
        registry.tokenizer.chat_template = registry.chat.template  # of the training, which may be another
    wrapped = HFLM(pretrained=registry.model, tokenizer=registry.tokenizer, batch_size=batch_size)
    found = {}
    # of git and of pip, each time, what is recorded by other means
    asks_nothing = patch.multiple(
        "lm_eval.evaluator", create=True, add_env_info=lambda _: None, get_git_commit_hash=lambda: None
    )
    for answers in _answering(registry, task):
        with memory_errors(f"benchmarks, {answers}"), _benchmark_errors("benchmarks"), asks_nothing:
            found[answers] = simple_evaluate(
                wrapped,
                tasks=benchmarks,
                task_manager=TaskManager(include_defaults=False),  # they are loaded: its index would take seconds
                limit=limit,
                apply_chat_template=has_template,
                log_samples=False,
                confirm_run_unsafe_code=run_code,
            )
    return found


def _answering(registry: AdapterRegistry, task: str) -> Iterator[str]:
    """Switch the adapters, and say what answers until the next turn."""
    registry.use(None)
    yield BARE
    registry.use(task)
    if registry.shared is None:
        yield LORA
        return
    with registry.without_crma():
        yield LORA
    yield BOTH


def _require_packages() -> None:
    """Raises: MissingPackageError."""
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "crma evaluate",
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'evaluate'",
            remedy="pip install 'crma[evaluate]'",
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


class _NoMetricCode:
    """In place of `evaluate.load`, which fetches and runs the code of metrics that lm-eval does not bring itself."""

    def __init__(self) -> None:
        self.asked: str | None = None

    def __call__(self, path: str, *_: Any, **__: Any) -> None:
        self.asked = path
        self.check()

    def check(self) -> None:
        """lm-eval goes on without a metric that could not be loaded, so this is asked again after the loading."""
        if self.asked is not None:
            raise TaskDataError(
                f"metric {self.asked!r}",
                got="one that lm-eval does not bring, whose code would be fetched and run",
                allowed="the metrics of lm-eval",
                remedy=f"name another one; or {RUN_CODE}",
            )


@contextmanager
def _no_foreign_code() -> Iterator[Callable[[], None]]:
    """Inside the block a template of a benchmark reaches no Python, and metrics run no code of others; what is yielded
    raises TaskDataError where one was to."""
    import evaluate
    import lm_eval.utils

    templates = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    templates.filters |= lm_eval.utils.env.filters
    metrics = _NoMetricCode()
    with patch.object(lm_eval.utils, "env", templates), patch.object(evaluate, "load", metrics):
        yield metrics.check


@contextmanager
def _benchmark_errors(name: str) -> Iterator[None]:
    """Whatever lm-eval, `datasets` and a task file raise, as one error. Raises: TaskDataError."""
    try:
        yield
    except CRMAError:
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        allowed, remedy = "a benchmark of lm-eval that fits its data and the model", "correct the file, or leave it out"
        if isinstance(error, ConnectionError) or "offline" in words.lower():
            words = f"data that are not on this machine ({words})"
            allowed = "data in the cache of `datasets`, or a file"
            remedy = "set HF_HUB_OFFLINE=0 where there is a network: it is then fetched once, and kept in the cache"
        elif "marked as unsafe" in words:
            remedy = f"it runs what the model writes as a program; {RUN_CODE}"
        elif isinstance(error, ImportError):
            remedy = "install the package that is named"
        raise TaskDataError(name, got=words, allowed=allowed, remedy=remedy) from error


def _load(names: Sequence[str], run_code: bool, check: Callable[[], None]) -> list[Any]:
    """Tasks and groups of lm-eval, with their data. Raises: ConfigError, TaskDataError."""
    from lm_eval.tasks import TaskManager

    if not names:
        raise ConfigError("--with", got="no benchmark", allowed="a name or more", remedy="lm-eval:NAME,...")
    own = {name: Path(name).resolve() for name in names if name.endswith((".yaml", ".yml"))}
    for path in own.values():
        if "group" in _read_yaml(path, run_code):  # lm-eval finds a group by its name alone, in folders that it indexes
            raise TaskDataError(str(path), got="a group", allowed="a task", remedy="name its tasks one by one")
    manager = TaskManager(include_defaults=len(own) < len(names))  # the index of lm-eval's own tasks takes seconds
    loaded: dict[str, Any] = {}
    inside: set[str] = set()  # what comes with its group
    for name in names:
        if name not in own and name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 5)
            raise ConfigError(
                f"benchmark {name!r}",
                got="a name that lm-eval does not know",
                allowed="its tasks, groups and tags, and files that end in .yaml",
                remedy=f"perhaps {', '.join(near)}" if near else "`lm-eval ls tasks` lists them",
            )
        with _benchmark_errors(f"benchmark {name!r}"):
            found = manager.load([str(own.get(name, name))])
        check()
        if twice := loaded.keys() & found["tasks"].keys():
            raise ConfigError("--with", got=f"{min(twice)} twice", allowed="each benchmark once", remedy="name it once")
        loaded |= found["tasks"] | found["groups"]
        inside |= {child for children in found.get("group_map", {}).values() for child in children}
    return [each for name, each in loaded.items() if name not in inside]


def _read_yaml(path: Path, run_code: bool, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file of the user's with what it includes, read without running anything.

    Raises: TaskDataError for one that is damaged; and, unless ``run_code``, for one that names a Python function.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    functions: list[str] = []
    Loader.add_constructor("!function", lambda loader, node: functions.append(str(node.value)))
    text = read_text(path, TaskDataError, limit=TEXT_LIMIT)
    try:
        content = yaml.load(text, Loader=Loader)
        if not isinstance(content, dict) or path in above:
            raise ValueError("a file that includes itself" if path in above else "no fields")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TaskDataError(
            str(path),
            got=" ".join(str(error).split())[:300],
            allowed="a task of lm-eval in YAML",
            remedy="correct the file",
        ) from error
    if functions and not run_code:
        raise TaskDataError(
            str(path),
            got=f"the Python function {functions[0]!r}, which would be run",
            allowed="a task that names no code",
            remedy=f"say the same with a template; or {RUN_CODE}",
        )
    included = content.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read_yaml((path.parent / str(name)).resolve(), run_code, (*above, path))
    return merged | content


def _rows(found: dict[str, Any]) -> list[Row]:
    """From what lm-eval returns, by what answered."""
    any_of = next(iter(found.values()))
    parents = {child: group for group in any_of.get("groups", {}) for child in any_of["group_subtasks"][group]}
    return [
        Row(
            benchmark=name,
            metric=metric,
            filter=way,
            samples=any_of["n-samples"].get(name, {}).get("effective"),
            higher_is_better=any_of["higher_is_better"].get(name, {}).get(metric),
            part_of=parents.get(name),
            scores={
                answers: Score(
                    value=_finite(results["results"][name][key]),
                    stderr=_finite(results["results"][name].get(f"{metric}_stderr,{way}")),
                )
                for answers, results in found.items()
            },
        )
        for name, metrics in any_of["results"].items()
        for key in metrics
        for metric, comma, way in [key.partition(",")]
        if comma and not metric.endswith("_stderr")
    ]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
