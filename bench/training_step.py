"""Training steps by the engines of ``crma finetune``: of LoRA alone and with CRMA, of random tokens and of texts.

Models: ``tiny`` and ``mistral-7b``, with random weights; ``smollm2``, the real SmolLM2-135M; or a folder.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from bench.memory import peak_bytes, reset_peak

STEPS = 10_000  # of the schedule: more than are taken
WARMUP = 3
DECODED = 64  # tokens of a generation
RANDOM = {"tiny": ("tinyllama-1.1b", "reduced"), "mistral-7b": ("mistral-7b-v0.3", "full")}


@dataclass(frozen=True)
class Setting:
    """What both sides have in common. ``mixed``: float32 weights under bfloat16 autocast. ``delta``: CRMA's budget."""

    model: str = "smollm2"
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 4
    tokens: int = 112
    delta: float | None = None
    lora_rank: int = 8


class Side:
    """LoRA on every linear layer, and CRMA where ``crma`` is set; ``step()`` trains on one batch of random tokens.

    Raises: BackendError, ModelError, ProtocolError, and what else the engine raises.
    """

    def __init__(self, setting: Setting, *, crma: bool = True, framework: str = "torch") -> None:
        import numpy as np

        from backends.finetune.engines.by_name import engine_factory
        from backends.finetune.protocols.protocol import load_protocol
        from backends.finetune.tasks.encoding import EncodedExample, collate

        protocol = load_protocol(
            "quickstart",
            [f"lora.rank={setting.lora_rank}"],
            precision=setting.precision,
            batch_size=setting.batch,
            max_tokens=setting.tokens,
        )
        condition = f"modular@{setting.delta or 'none'}" if crma else "frozen"
        folder = model_folder(*RANDOM.get(setting.model, (setting.model, None)))
        make_engine, _ = engine_factory(f"{framework}-{setting.device}")
        self.engine: Any = make_engine(job_of(folder, protocol, condition))
        for phase in range(1 if setting.delta is None else 2):  # the second one's anchor is the state after the first
            self.engine.begin_phase(phase, STEPS)
        ids = np.random.default_rng(0).integers(0, 256, (setting.batch, setting.tokens))
        self._batch = collate([EncodedExample(tuple(row), 1) for row in ids.tolist()], 0)
        self._taken = count()

    def step(self) -> float:
        """One optimizer step. Returns the loss, and so waits for it."""
        return float(self.engine.step([self._batch], next(self._taken)).loss)

    def decoder(self) -> Callable[[], object]:
        """A function that writes ``DECODED`` tokens after a batch of one, as ``crma generate`` does."""
        import torch

        from backends.torch.attach import prepared

        model, prompt = self.engine.model.eval(), torch.from_numpy(self._batch.input_ids[:1]).to(self.engine.device)
        length = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False, "pad_token_id": 0}

        def decode() -> object:
            mixed = torch.autocast(self.engine.device.type, torch.bfloat16, enabled=self.engine._is_mixed())
            with torch.no_grad(), mixed, prepared(model):
                return model.generate(prompt, attention_mask=torch.ones_like(prompt), **length).tolist()

        return decode


def peak(setting: Setting, steps: int = 3, **side: Any) -> dict[str, Any]:
    """Peak memory of a :class:`Side` and its steps, in this process: for one that does nothing else."""
    one = Side(setting, **side)
    since_load = reset_peak(setting.device)
    for _ in range(steps):
        one.step()
    return {"peak_bytes": peak_bytes(setting.device), "since_load": since_load}


def alternated(
    sides: Sequence[Callable[[], object]],
    rounds: int,
    names: tuple[str, str],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time two functions in alternation, the first first in even rounds. Times in seconds; the ratio is the median over
    rounds of the two neighbouring times, so that a drift of the machine cancels.
    """
    for _ in range(WARMUP):
        for side in sides:
            side()
    times: list[list[float]] = [[], []]
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].append(seconds(sides[which], clock))
    ratios = quartiles([second / first for first, second in zip(*times, strict=True)])
    return {
        **{f"{name}_median": statistics.median(values) for name, values in zip(names, times, strict=True)},
        "ratio": ratios["median"],
        "ratio_quartiles": [ratios["lower_quartile"], ratios["upper_quartile"]],
        "ratio_of_minima": min(times[1]) / min(times[0]),
    }


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """One call, which waits for its own result."""
    start = clock()
    work()
    return clock() - start


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def model_folder(name: str, size: Any = None) -> Path:
    """The folder of a model, with random weights if a ``size`` of them is given. Raises: ModelError."""
    from backends.finetune.models.random_weights import random_model_folder
    from backends.finetune.models.resolve import resolve_model

    return resolve_model(name) if size is None else random_model_folder(name, size=size)


def job_of(folder: Path, protocol: Any, condition: str, tasks: Sequence[Any] = ()) -> Any:
    """What an engine is made of, at seed 0."""
    from backends.finetune.tasks.job import Job

    return Job(folder, protocol, protocol.condition(condition), 0, tasks)


def spec_texts(characters: int) -> list[Any]:
    """The specification in pieces of so many characters, as examples."""
    from backends.finetune.models.tokenizer import training_text
    from backends.finetune.tasks.task import Example

    text = "\n".join(training_text())
    return [Example("", text[first : first + characters]) for first in range(0, len(text), characters)]
