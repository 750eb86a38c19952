"""What answers: bit for bit what a freshly loaded model with the same files answers."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import safetensors.torch
import torch
from peft import PeftModel

from backends.finetune.engines.torch.lora import LoraSlot
from backends.finetune.inference.peft_adapters import AdapterContent, load_adapter
from backends.finetune.inference.registry import AdapterRegistry
from backends.finetune.inference.tests.conftest import NAMES, save_random_crma, save_random_lora, tiny_base
from backends.finetune.protocols.protocol import LoraSection
from backends.torch import attach_crma
from reference import AdapterConfig
from reference.errors import ConfigError, ModelError, RunFolderError, StateFileError

IDS = torch.randint(1, 250, (3, 12), generator=torch.Generator().manual_seed(5))


def logits(registry: AdapterRegistry) -> torch.Tensor:
    with torch.no_grad():
        return registry.model(input_ids=IDS, use_cache=False).logits


@cache
def fresh(tiny_model: Path, lora: Path | None, crma: Path | None = None, *, disabled: bool = False) -> torch.Tensor:
    """The same answer by another way: one new model, PEFT's own loader, CRMA's own."""
    base: Any = tiny_base(tiny_model)
    backbone = None
    if crma is not None:
        backbone = attach_crma(base, AdapterConfig(16, 2, 2))
        backbone.load(crma)
    model = base if lora is None else PeftModel.from_pretrained(base, lora)
    with torch.no_grad():
        if disabled and backbone is not None:
            with backbone.disabled():
                return model(input_ids=IDS, use_cache=False).logits
        return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def registry(modular_run: Path) -> AdapterRegistry:
    return AdapterRegistry.from_run(modular_run)


def test_swapping_gives_the_bits_of_a_fresh_model(
    registry: AdapterRegistry, modular_run: Path, tiny_model: Path
) -> None:
    branch = modular_run / "7-modular"
    crma = branch / "crma-2.safetensors"
    expected = {name: fresh(tiny_model, branch / f"task-{index}", crma) for index, name in enumerate(NAMES)}
    bare = fresh(tiny_model, None)
    for pair in (("alpha", "beta"), ("beta", "gamma"), ("alpha", "gamma")):
        assert not torch.equal(expected[pair[0]], expected[pair[1]])
    for name in ("beta", "alpha", None, "gamma", "alpha", "alpha", "beta", None):
        registry.use(name)
        assert registry.active == name
        assert torch.equal(logits(registry), bare if name is None else expected[name])
    assert not any(parameter.requires_grad for parameter in registry.model.parameters())
    assert registry.names == tuple(NAMES)
    assert registry.in_memory == 3


def test_before_anything_is_used_the_bare_model_answers(registry: AdapterRegistry, tiny_model: Path) -> None:
    assert registry.active is None
    assert torch.equal(logits(registry), fresh(tiny_model, None))


def test_without_crma_is_the_backbone_disabled(registry: AdapterRegistry, modular_run: Path, tiny_model: Path) -> None:
    branch = modular_run / "7-modular"
    crma = branch / "crma-2.safetensors"
    registry.use("beta")
    with registry.without_crma():
        off = logits(registry)
        registry.use("alpha")  # swapping inside does not switch it on again
        assert torch.equal(logits(registry), fresh(tiny_model, branch / "task-0", crma, disabled=True))
        registry.use("beta")
    assert torch.equal(off, fresh(tiny_model, branch / "task-1", crma, disabled=True))
    on = logits(registry)
    assert torch.equal(on, fresh(tiny_model, branch / "task-1", crma))
    assert not torch.equal(on, off)
    assert registry.shared is not None
    with registry.shared.backbone.disabled():
        assert torch.equal(logits(registry), off)


@pytest.mark.parametrize("limit", [1, 2])
def test_at_most_so_many_adapters_are_resident(
    modular_run: Path, tiny_model: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = []

    def recorded(folder: Path, device: torch.device, expected: dict[str, str] | None) -> AdapterContent:
        content = load_adapter(folder, device, expected)
        tensors.append(weakref.ref(next(iter(content.tensors.values())).untyped_storage()))
        return content

    monkeypatch.setattr("backends.finetune.inference.registry.load_adapter", recorded)
    registry = AdapterRegistry.from_run(modular_run, resident=limit)
    branch = modular_run / "7-modular"
    for name in ("alpha", "beta", "gamma", "gamma", "alpha", "gamma", "beta"):
        registry.use(name)
        expected = fresh(tiny_model, branch / f"task-{NAMES.index(name)}", branch / "crma-2.safetensors")
        assert torch.equal(logits(registry), expected)
        gc.collect()
        alive = sum(tensor() is not None for tensor in tensors)
        assert alive == registry.in_memory <= limit
        parameters = [key for key, _ in registry.model.named_parameters() if "q_proj.lora_A" in key]
        assert len(parameters) == 2  # PEFT sees one adapter in two layers, however many there are
    assert registry.in_memory == limit
    with pytest.raises(ConfigError, match="resident"):
        AdapterRegistry.from_run(modular_run, resident=0)


def test_the_least_recently_used_one_goes(modular_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def recorded(folder: Path, device: torch.device, expected: dict[str, str] | None) -> AdapterContent:
        reads.append(folder.name)
        return load_adapter(folder, device, expected)

    monkeypatch.setattr("backends.finetune.inference.registry.load_adapter", recorded)
    registry = AdapterRegistry.from_run(modular_run, resident=2)
    for name in ("alpha", "beta", "alpha", "gamma", "alpha", "beta"):
        registry.use(name)
    assert reads == ["task-0", "task-1", "task-2", "task-1"]  # beta went for gamma, alpha stayed


def test_adding_and_removing_changes_nothing_else(
    registry: AdapterRegistry, modular_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    crma = modular_run / "7-modular" / "crma-2.safetensors"
    registry.use("beta")
    before = logits(registry)
    state = {key: value.clone() for key, value in registry.model.state_dict().items()}
    folder = save_random_lora(tiny_model, tmp_path / "new.v1", seed=9, rank=3)
    registry.add("new.v1 of mine", folder)
    assert torch.equal(logits(registry), before)
    registry.use("new.v1 of mine")
    assert torch.equal(logits(registry), fresh(tiny_model, folder, crma))
    registry.use("beta")
    assert torch.equal(logits(registry), before)
    registry.remove("new.v1 of mine")
    assert registry.names == tuple(NAMES)
    after = registry.model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    assert torch.equal(logits(registry), before)
    registry.remove("beta")  # the active one
    assert registry.active is None
    assert torch.equal(logits(registry), fresh(tiny_model, None))
    for name in ("alpha", "gamma"):
        registry.remove(name)
    assert torch.equal(logits(registry), fresh(tiny_model, None))
    registry.add("beta", modular_run / "7-modular" / "task-1", crma)
    registry.use("beta")
    assert torch.equal(logits(registry), before)


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def rewritten(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        change(tensors)
        safetensors.torch.save_file(tensors, folder / WEIGHTS)

    return damage


def of_another_rank(folder: Path) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"r": 5}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7]),
    "missing": lambda folder: (folder / WEIGHTS).unlink(),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "config": lambda folder: (folder / CONFIG).write_text("{"),
    "another kind": lambda folder: (folder / CONFIG).write_text('{"peft_type": "IA3"}'),
    "rank": of_another_rank,
    "architecture": rewritten(lambda tensors: tensors.update({KEY: torch.zeros(2, 24)})),
    "layers": rewritten(lambda tensors: tensors.update({KEY.replace("layers.0", "layers.7"): tensors[KEY].clone()})),
    "tensor missing": rewritten(lambda tensors: tensors.pop(KEY)),
    "nan": rewritten(lambda tensors: tensors[KEY][0, :1].fill_(float("nan"))),
    "odd tensor": rewritten(lambda tensors: tensors.update({"base_model.model.something": torch.ones(2)})),
}


@pytest.mark.parametrize(
    ("how", "first"),
    [(how, False) for how in DAMAGES] + [("cut short", True), ("architecture", True), ("odd tensor", True)],
)
def test_a_damaged_adapter_changes_nothing(
    make_run: Callable[..., Path], tiny_model: Path, how: str, first: bool
) -> None:
    run = make_run("modular")
    branch = run / "7-modular"
    DAMAGES[how](branch / "task-1")
    registry = AdapterRegistry.from_run(run)
    if not first:
        registry.use("alpha")
    before = logits(registry)
    with pytest.raises(StateFileError, match="task-1"):
        registry.use("beta")
    assert registry.active == (None if first else "alpha")
    assert torch.equal(logits(registry), before)
    registry.use("gamma")
    assert torch.equal(logits(registry), fresh(tiny_model, branch / "task-2", branch / "crma-2.safetensors"))
    with pytest.raises(StateFileError, match="task-1"):
        registry.add("again", branch / "task-1")
    assert registry.names == tuple(NAMES)


def test_refusals(registry: AdapterRegistry, modular_run: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'delta'.*alpha, beta, gamma"):
        registry.use("delta")
    with pytest.raises(ConfigError, match="'delta'"):
        registry.remove("delta")
    with pytest.raises(ConfigError, match="taken"):
        registry.add("alpha", modular_run / "7-modular" / "task-1")
    with pytest.raises(StateFileError, match="no such folder"):
        registry.add("new", tmp_path / "nothing")
    with pytest.raises(RunFolderError, match=r"seed 3.*modular \(seed 7\)"):
        AdapterRegistry.from_run(modular_run, seed=3)
    with pytest.raises(RunFolderError, match=r"'frozen'.*modular \(seed 7\)"):
        AdapterRegistry.from_run(modular_run, condition="frozen")
    with pytest.raises(RunFolderError, match="full"):
        AdapterRegistry.from_run(make_run("full"), condition="full")
    with pytest.raises(ModelError):
        AdapterRegistry.from_run(modular_run, model=tmp_path / "none")
    frozen = AdapterRegistry.from_run(make_run("frozen"), condition="frozen")
    with pytest.raises(ConfigError, match="CRMA"), frozen.without_crma():
        pass
    shutil.copy(modular_run / "results.jsonl", tmp_path)
    with pytest.raises(StateFileError, match="crma-2"):
        AdapterRegistry.from_run(tmp_path)


def test_each_condition_answers_with_its_own(make_run: Callable[..., Path], tiny_model: Path) -> None:
    pinned = make_run("modular-pinned")
    registry, branch = AdapterRegistry.from_run(pinned, condition="modular-pinned"), pinned / "7-modular-pinned"
    for index in (2, 0, 1, 0):
        registry.use(NAMES[index])
        expected = fresh(tiny_model, branch / f"task-{index}", branch / f"crma-{index}.safetensors")
        assert torch.equal(logits(registry), expected)

    naive = make_run("naive")
    registry = AdapterRegistry.from_run(naive, condition="naive")
    for name in NAMES:
        registry.use(name)
        assert torch.equal(logits(registry), fresh(tiny_model, naive / "7-naive" / "task-2"))
    assert registry.in_memory == 1  # one LoRA for all tasks
    registry.remove("gamma")
    registry.use("alpha")
    assert registry.in_memory == 1

    summed = make_run("o-lora")
    registry = AdapterRegistry.from_run(summed, condition="o-lora")
    registry.use("beta")
    model: Any = PeftModel.from_pretrained(tiny_base(tiny_model), summed / "7-o-lora" / "task-0", adapter_name="0")
    for index in (1, 2):
        model.load_adapter(summed / "7-o-lora" / f"task-{index}", adapter_name=str(index))
    model.base_model.set_adapter(["0", "1", "2"])
    with torch.no_grad():
        assert torch.equal(logits(registry), model(input_ids=IDS, use_cache=False).logits)
    with pytest.raises(ConfigError, match="at least 3"):
        AdapterRegistry.from_run(summed, condition="o-lora", resident=2)


def test_a_damaged_pinned_state_changes_nothing(make_run: Callable[..., Path], tiny_model: Path) -> None:
    run = make_run("modular-pinned")
    file = run / "7-modular-pinned" / "crma-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    registry = AdapterRegistry.from_run(run, condition="modular-pinned")
    registry.use("beta")
    before = logits(registry)
    with pytest.raises(StateFileError, match="crma-0"):
        registry.use("alpha")
    assert registry.active == "beta"
    assert torch.equal(logits(registry), before)


def test_an_unconstrained_run_answers(make_run: Callable[..., Path], tiny_model: Path) -> None:
    from backends.finetune.engines.torch.unconstrained import save_unconstrained, unconstrain

    run = make_run("modular-unconstrained")
    branch = run / "7-modular-unconstrained"
    base: Any = tiny_base(tiny_model)
    backbone = attach_crma(base, AdapterConfig(16, 2, 2), gate_logit=1.0)
    unconstrain(backbone)
    for mixing in backbone.parameter_groups()["mixing"]:
        torch.nn.init.normal_(mixing, std=2.0)
    save_unconstrained(branch / "mixing-2.safetensors", backbone.state())
    model = PeftModel.from_pretrained(base, branch / "task-1")
    registry = AdapterRegistry.from_run(run, condition="modular-unconstrained")
    registry.use("beta")
    with torch.no_grad():
        assert torch.equal(logits(registry), model(input_ids=IDS, use_cache=False).logits)


def test_a_crma_of_another_model_is_refused(registry: AdapterRegistry, tiny_model: Path, tmp_path: Path) -> None:
    folder = save_random_lora(tiny_model, tmp_path / "lora", seed=3)
    from transformers import LlamaConfig, LlamaForCausalLM

    other: Any = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=9)
    )
    attach_crma(other, AdapterConfig(16, 2, 2)).save(tmp_path / "crma.safetensors")
    with pytest.raises(StateFileError, match="got base_model"):
        registry.add("new", folder, tmp_path / "crma.safetensors")
    crma = save_random_crma(tiny_model, tmp_path / "own.safetensors", seed=8)
    registry.add("new", folder, crma)
    registry.use("new")
    assert torch.equal(logits(registry), fresh(tiny_model, folder, crma))


def test_dropout_of_training_does_not_answer_along(tiny_model: Path, tmp_path: Path) -> None:
    """Whenever PEFT adds to the model that answers: the first adapter, one of another kind, one after an eviction."""
    folders = [
        save_random_lora(tiny_model, tmp_path / str(rank), seed=rank, rank=rank, lora_dropout=0.5, task_type=kind)
        for rank, kind in ((2, None), (3, "CAUSAL_LM"), (4, None))
    ]
    registry = AdapterRegistry(tiny_base(tiny_model), None, resident=2)
    for folder in folders:
        registry.add(folder.name, folder)
    for folder in (*folders, *folders):
        registry.use(folder.name)
        assert not [name for name, module in registry.model.named_modules() if module.training]
        assert torch.equal(logits(registry), fresh(tiny_model, folder))


def test_what_peft_adds_for_training_is_in_the_models_mode(tiny_model: Path) -> None:
    for training in (False, True):
        slot = LoraSlot(tiny_base(tiny_model).train(training), LoraSection())
        assert {module.training for module in slot.model.modules()} == {training}
