"""AdapterRegistry: the adapters of many tasks on one base model, one of them answering at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch

from backends.finetune.engines.torch.model import load_base
from backends.finetune.inference.base_folder import base_folder
from backends.finetune.inference.generation import generate
from backends.finetune.inference.peft_adapters import PeftAdapters, load_adapter
from backends.finetune.inference.run_adapters import RunAdapters, TaskAdapter, run_adapters
from backends.finetune.inference.shared_adapter import SharedAdapter, attach_shared
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.tasks.chat import Chat, Message
from reference.errors import ConfigError


class AdapterRegistry:
    """Task adapters by name. ``model`` is the causal LM, changed in place; ``use(name)`` decides what it answers with.

    >>> registry = AdapterRegistry.from_run("runs/quickstart")        # doctest: +SKIP
    >>> registry.generate("Question: ...", task="Medical")            # doctest: +SKIP

    LoRAs are read when they are first used. At most ``resident`` of them stay in memory (None: all), the least recently
    used going first, so that a hundred tasks need no more memory than a few. Not for several threads at once.

    Args:
        model: a causal LM, frozen by this class. tokenizer: its own. tasks: what each task answers with.
        shared: the CRMA that is attached to ``model``, if any. resident: see above. template: the chat template that
            the tasks were trained with, as in a protocol.

    Raises: ConfigError. Source: ours; hot swap by PEFT.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: dict[str, TaskAdapter] | None = None,
        *,
        shared: SharedAdapter | None = None,
        resident: int | None = None,
        random_weights: bool = False,
        template: str = "none",
    ) -> None:
        self.model, self.tokenizer, self.shared = model.eval().requires_grad_(False), tokenizer, shared
        self.random_weights, self.seed, self.resident = random_weights, 0, resident
        self.chat = Chat(tokenizer, template)
        self._adapters = PeftAdapters(model)
        self._tasks: dict[str, TaskAdapter] = {}
        self._keys: dict[Path, str] = {}  # of every folder that was ever attached; PEFT's names allow no dots
        self._recent: dict[Path, None] = {}  # folders in memory, the most recently used last
        self._active: str | None = None
        self._bypassed = False
        for name, adapter in (tasks or {}).items():
            self._check_resident(adapter)
            self._tasks[name] = adapter
        self._switch_shared()

    @classmethod
    def from_run(
        cls,
        run_folder: Path | str,
        *,
        seed: int | None = None,
        condition: str = "modular",
        device: str = "cpu",
        model: str | Path | None = None,
        resident: int | None = None,
    ) -> AdapterRegistry:
        """The registry of a run's finished tasks; see :func:`run_adapters` for what answers under which condition.

        Args:
            run_folder: of `crma finetune`. seed: by default the first one with a finished task.
            model: the base model's folder or name; by default what the protocol says.
            device: "cpu" or "cuda". resident: LoRAs in memory at most.

        Raises: RunFolderError, ModelError, StateFileError (a shared CRMA of another model, or damaged), ConfigError.
        """
        run = run_adapters(run_folder, seed=seed, condition=condition)
        path = base_folder(run, model)
        protocol = run.protocol.model_copy(update={"gradient_checkpointing": False})
        base = load_base(path, protocol, torch.device(device))
        registry = cls(
            base,
            load_tokenizer(path),
            run.tasks,
            shared=_shared_of(base, run),
            resident=resident,
            random_weights=run.random_weights,
            template=protocol.template,
        )
        registry.seed = run.seed
        return registry

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self._tasks)

    @property
    def active(self) -> str | None:
        """The task that answers now; None for the bare base model."""
        return self._active

    @property
    def in_memory(self) -> int:
        """How many LoRAs are in memory."""
        return len(self._recent)

    def use(self, task: str | None) -> None:
        """Answer with the adapters of ``task`` from now on; with the bare base model, CRMA off as well, for None.

        Raises: ConfigError for an unknown task, StateFileError for a damaged file or one of another model; then what
        answered before goes on answering.
        """
        if task is None:
            self._adapters.activate([])
            self._active = None
            self._switch_shared()
            return
        adapter = self._task(task)
        new = [folder for folder in dict.fromkeys(adapter.lora) if folder not in self._recent]
        contents = {folder: load_adapter(folder, self._adapters.device, adapter.expected(folder)) for folder in new}
        for content in contents.values():
            self._adapters.check(content)
        swap = adapter.crma if self.shared is not None and self.shared.file != adapter.crma else None
        state = self.shared.read(swap) if self.shared is not None and swap is not None else None
        for folder, content in contents.items():
            self._adapters.attach(self._keys.setdefault(folder, f"adapter_{len(self._keys)}"), content)
            self._recent[folder] = None
        if self.shared is not None and swap is not None and state is not None:
            self.shared.set(state, swap)
        for folder in adapter.lora:
            self._recent.pop(folder, None)
            self._recent[folder] = None
        self._adapters.activate([self._keys[folder] for folder in adapter.lora])
        self._active = task
        self._switch_shared()
        self._evict()

    def add(self, name: str, folder: Path | str, crma: Path | str | None = None) -> None:
        """Add a task whose LoRA lies in ``folder``, checked now and kept on the disk until it is used.

        ``crma``: the state of the shared CRMA that it answers with; by default that of the last task.

        Raises: ConfigError for a name that is taken, StateFileError; then nothing is changed.
        """
        if name in self._tasks:
            raise ConfigError(
                "name", got=f"{name!r}, which is taken", allowed="a new name", remedy=f"remove({name!r}) first"
            )
        self._adapters.check(load_adapter(Path(folder), self._adapters.device))
        present = None if self.shared is None else self.shared.file
        default = next((task.crma for task in reversed(self._tasks.values())), present)
        if crma is not None:
            if self.shared is None:
                raise ConfigError(
                    "crma", got=str(crma), allowed="None where the model carries no CRMA", remedy="leave it out"
                )
            self.shared.read(Path(crma))
        self._tasks[name] = TaskAdapter((Path(folder),), Path(crma) if crma else default)

    def remove(self, name: str) -> None:
        """Forget a task, and free what no other task answers with. Where it was active, the bare base model answers.

        The files are left alone. Raises: ConfigError for an unknown task.
        """
        self._task(name)
        if self._active == name:
            self.use(None)
        gone = set(self._tasks.pop(name).lora) - {folder for task in self._tasks.values() for folder in task.lora}
        for folder in gone & set(self._recent):
            self._drop(folder)

    @contextmanager
    def without_crma(self) -> Iterator[None]:
        """Bypass the shared CRMA inside the block, whichever task answers: the inference toggle.

        Raises: ConfigError where there is none. Source: paper section 6.1.4.
        """
        if self.shared is None:
            raise ConfigError(
                "CRMA", got="a run without one", allowed="a condition with CRMA", remedy="leave the toggle out"
            )
        before, self._bypassed = self._bypassed, True
        self._switch_shared()
        try:
            yield
        finally:
            self._bypassed = before
            self._switch_shared()

    @overload
    def generate(self, prompts: str, *, task: str | None, **settings: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[Any], *, task: str | None, **settings: Any) -> list[str]: ...

    def generate(self, prompts: str | Sequence[Any], *, task: str | None, **settings: Any) -> str | list[str]:
        """Write on after one prompt or several, as ``task``; None is the bare base model. A prompt is a text, or the
        turns of a conversation as (role, content).

        ``settings``: max_new_tokens, batch_size, temperature, seed of :func:`generation.generate`; greedy by default.
        """
        self.use(task)
        given = [prompts] if isinstance(prompts, str) else prompts
        asked = [prompt if isinstance(prompt, str) else [Message(*turn) for turn in prompt] for prompt in given]
        texts = generate(self.model, self.tokenizer, asked, chat=self.chat, **settings)
        return texts[0] if isinstance(prompts, str) else texts

    def _task(self, name: str) -> TaskAdapter:
        if name not in self._tasks:
            raise ConfigError(
                "task", got=repr(name), allowed=", ".join(self._tasks) or "no task yet", remedy="name one of these"
            )
        return self._tasks[name]

    def _switch_shared(self) -> None:
        if self.shared is not None:
            self.shared.switch(on=self._active is not None and not self._bypassed)

    def _check_resident(self, adapter: TaskAdapter) -> None:
        least = len(set(adapter.lora))
        if self.resident is not None and self.resident < max(least, 1):
            raise ConfigError(
                "resident",
                got=self.resident,
                allowed=f"at least {max(least, 1)}, which one task answers with",
                remedy="leave it out to keep all in memory",
            )

    def _evict(self) -> None:
        while self.resident is not None and len(self._recent) > self.resident:
            self._drop(next(iter(self._recent)))

    def _drop(self, folder: Path) -> None:
        self._adapters.detach(self._keys[folder])
        del self._recent[folder]


def _shared_of(base: Any, run: RunAdapters) -> SharedAdapter | None:
    files = [task.crma for task in run.tasks.values() if task.crma is not None]
    return attach_shared(base, files[-1], constrained=run.condition.crma == "doubly-stochastic") if files else None
