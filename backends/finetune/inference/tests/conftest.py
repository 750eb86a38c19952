"""A run folder with random adapters on the tiny model, written without training anything."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from backends.finetune.tasks.task import fingerprint, parse_task_option

NAMES = ["alpha", "beta", "gamma"]


def tiny_base(folder: Path) -> Any:
    """The tiny model as it is on the disk."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()


def save_random_lora(model_folder: Path, folder: Path, *, seed: int, rank: int = 2, **settings: Any) -> Path:
    """A LoRA whose A and B are both random, by PEFT's own save_pretrained. ``settings``: more of LoraConfig's."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny_base(model_folder)
    torch.manual_seed(100 + seed)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **settings)
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder


def save_random_crma(model_folder: Path, path: Path, *, seed: int) -> Path:
    """A CRMA with random logits and an open gate."""
    import torch

    from backends.torch import attach_crma
    from reference import AdapterConfig

    backbone = attach_crma(tiny_base(model_folder), AdapterConfig(16, 2, 2), seed=seed, gate_logit=1.0)
    torch.manual_seed(200 + seed)
    for group in backbone.parameter_groups()["mixing"]:
        torch.nn.init.normal_(group)
    backbone.save(path)
    return path


@pytest.fixture(scope="session")
def make_run(tiny_model: Path, tiny_tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_run("modular")``: a finished run of that condition, three tasks, seed 7; a copy of its own."""
    pytest.importorskip("peft")
    from backends.finetune.models.marker import MARKER
    from backends.finetune.protocols.protocol import Protocol
    from backends.finetune.runs.results import append_record

    @cache
    def build(condition: str, random_weights: bool, seed: int) -> Path:
        run = tmp_path_factory.mktemp("original")
        branch = run / f"{seed}-{condition}"
        model = tiny_model
        if random_weights:
            model = Path(shutil.copytree(tiny_model, run / "model"))
            (model / MARKER).write_text('{"seed": 0}')
        protocol = Protocol(
            name="tiny", description="", model=str(model), tasks=NAMES, train=9, holdout=4, seeds=[seed],
            conditions=[condition],
        )  # fmt: skip
        tasks = [parse_task_option(option) for option in tiny_tasks]
        prints = {task.name: fingerprint(task) for task in tasks}
        (run / f"tasks-{seed}.json").write_text(json.dumps(prints))
        about = {"protocol": {}, "backend": "torch-cpu", "model": ""}
        (run / "run.json").write_text(json.dumps(about))
        config = protocol.model_dump(mode="json")
        append_record(run / "results.jsonl", {
            "kind": "run", "protocol": "tiny", "model": "tiny-llama", "backend": "torch-cpu", "tasks": NAMES,
            "conditions": [condition], "seeds": [seed], "config": config, "random_weights": random_weights,
        })  # fmt: skip
        for phase, name in enumerate(NAMES):
            save_random_lora(tiny_model, branch / f"task-{phase}", seed=phase)
            if condition.startswith("modular"):
                save_random_crma(tiny_model, branch / f"crma-{phase}.safetensors", seed=phase)
            append_record(run / "results.jsonl", {
                "kind": "phase", "condition": condition, "seed": seed, "phase": phase, "task": name, "losses": [1.0],
                "holdout": dict.fromkeys(NAMES[: phase + 1], 1.0), "seconds": 1.0, "tokens": 1,
            })  # fmt: skip
        return run

    def make(condition: str, *, random_weights: bool = False, seed: int = 7) -> Path:
        copy = tmp_path_factory.mktemp("copy") / "run"
        return Path(shutil.copytree(build(condition, random_weights, seed), copy))

    return make


@pytest.fixture(scope="session")
def modular_run(make_run: Callable[..., Path]) -> Path:
    """Shared by tests that change nothing in it."""
    return make_run("modular")
