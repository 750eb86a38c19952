"""The files of a run: there, whole, finite, and of this run."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from backends.adapter_folder import CONFIG, WEIGHTS
from backends.files import TEXT_LIMIT, parse_json, read_bytes, sha256_of
from backends.finetune.certify.check import THE_RUN, Check, Subject
from backends.finetune.certify.moments import Moments
from backends.finetune.certify.states import StoredState
from backends.finetune.methods.method import Condition
from backends.finetune.protocols.protocol import LoraSection
from backends.finetune.runs.moments_file import read_moments
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import RunFolder
from backends.torch.state import load_state
from reference.errors import RunFolderError, StateFileError

_CONFIGS = ("streams", "rank", "iterations")
#: settings of PEFT with which the same tensors give other answers; the training leaves them at their defaults
_ANSWERS_OTHERWISE = {
    "alpha_pattern", "bias", "layers_to_transform", "lora_bias", "modules_to_save", "peft_type", "rank_pattern",
    "trainable_token_indices", "use_dora", "use_qalora", "use_rslora",
}  # fmt: skip


class RunFiles:
    """Reads the files of a run folder, and remembers the SHA-256 of each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.places = folder, RunFolder(folder)
        self.digests: dict[str, str] = {}

    def adapters(self, condition: Condition, seed: int, phases: int, section: LoraSection) -> tuple[Check, list[int]]:
        """The LoRA of each task (of the last phase where one is shared), or the whole model: loads, is finite, and has
        the rank and the scale of the protocol's ``section``. Also how many values each LoRA holds.
        """
        faults: list[str] = []
        counts: list[int] = []
        if condition.trains == "full":
            model = self.places.branch(seed, condition.name) / f"model-{phases - 1}.safetensors"
            self._tensors(model, faults)
            return Subject(condition.name, seed).holds("model file whole", "", faults), counts
        first = phases - 1 if condition.trains == "shared" else 0
        folders = [self.places.lora(seed, condition.name, phase) for phase in range(first, phases)]
        counts = self.loras(folders, section, faults, raised=condition.raised_rank)
        if condition.crma == "unconstrained":
            for phase in range(phases):
                self._tensors(self.places.branch(seed, condition.name) / f"mixing-{phase}.safetensors", faults)
        return Subject(condition.name, seed).holds("adapter files whole", "", faults), counts

    def loras(
        self, folders: Sequence[Path], section: LoraSection, faults: list[str], *, raised: bool = False
    ) -> list[int]:
        """How many values each LoRA holds; what is wrong with one is added to ``faults``."""
        counts: list[int] = []
        shapes: dict[str, Any] | None = None
        for lora in folders:
            settings = self._json(lora / "adapter_config.json", faults)
            tensors = self._tensors(lora / "adapter_model.safetensors", faults)
            if settings and tensors:
                wrong = _settings_faults(settings, tensors, section, raised=raised)
                faults += [f"{self._name(lora)}/adapter_config.json: {fault}" for fault in wrong]
                counts.append(sum(tensor.numel() for tensor in tensors.values()))
            found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            if found and shapes not in (None, found):
                faults.append(f"{self._name(lora)}: tensors of other names or shapes than in the first task")
            shapes = shapes or found or None
        return counts

    def states(self, condition: Condition, seed: int, phases: int) -> tuple[list[StoredState], list[Check]]:
        """The stored states of the shared CRMA that can be read, and the check that all can."""
        if condition.crma != "doubly-stochastic":
            return [], []
        paths = {phase: self.places.crma(seed, condition.name, phase) for phase in range(phases)}
        states, check = self.states_of(paths, Subject(condition.name, seed))
        return states, [check]

    def states_of(self, paths: Mapping[int, Path], of: Subject) -> tuple[list[StoredState], Check]:
        """The states in these files, by phase, and the check that all can be read."""
        states, faults = [], []
        for phase, path in paths.items():
            try:
                states.append(StoredState(self._name(path), phase, load_state(path)))
                self._digest(path)
            except StateFileError as error:
                faults.append(f"{self._name(path)}: got {error.got}")
        return states, of.holds("state files whole", "STATE-1, STATE-4", faults)

    def moments_of(self, paths: Mapping[int, Path], condition: Condition, of: Subject) -> tuple[Moments, list[Check]]:
        """The moments in these files, by phase, and the check that all can be read, where the condition has any."""
        if condition.data_budget is None:
            return {}, []
        found, faults = {}, []
        for phase, path in paths.items():
            try:
                found[phase] = read_moments(path)
                self._digest(path)
            except RunFolderError as error:
                faults.append(f"{self._name(path)}: {error.got}")
        return found, [of.holds("moment files whole", "DATA-1", faults)]

    def as_recorded(self, results: RunResults, condition: Condition, seed: int) -> Check:
        """Every file of a finished phase is recorded, and holds the bytes that were."""
        faults = [
            f"{name}: not in the record of phase {record.phase + 1}"
            for record in results.phases_of(condition.name, seed)
            for name in self._written(condition, seed, record.phase)
            if name not in record.files
        ]
        changed = self.places.changed_files(results, f"{seed}-{condition.name}")
        faults += [f"{name}: {reason}" for name, reason in changed if "/" in name]
        return Subject(condition.name, seed).holds("files as recorded", "", faults)

    def _written(self, condition: Condition, seed: int, phase: int) -> list[str]:
        """The files that a phase writes, by path within the folder."""
        files = self.places.files(seed, condition.name, phase)
        paths = [files.model] if condition.trains == "full" else [files.lora / CONFIG, files.lora / WEIGHTS]
        paths += {"none": [], "doubly-stochastic": [files.crma], "unconstrained": [files.mixing]}[condition.crma]
        paths += [files.consolidated] if condition.method.keeps_file else []
        paths += [files.moments] if condition.data_budget is not None else []
        return [self._name(path) for path in paths]

    def of_this_run(self, results: RunResults, states: list[StoredState]) -> Check:
        """run.json, results.jsonl, the tasks' names, the folders and all states speak of one run, model and size."""
        faults: list[str] = []
        identity = self._json(self.places.identity, faults)
        self._digest(self.places.results)
        protocol = identity.get("protocol", {}) if isinstance(identity.get("protocol"), dict) else {}
        if identity and identity.get("backend") != results.run.backend:
            faults.append(f"run.json: backend {identity.get('backend')!r}, results.jsonl: {results.run.backend!r}")
        for field, value in protocol.items():
            said = results.run.config.get(field, "nothing")
            if said != value:
                faults.append(f"run.json: {field} {value!r}, results.jsonl: {said!r}"[:300])
        needed = {"run.json", *(f"tasks-{seed}.json" for seed in results.seeds)}
        faults += [f"{name}: its digest is not in results.jsonl" for name in sorted(needed - results.files.keys())]
        faults += [f"{name}: {reason}" for name, reason in self.places.changed_files(results, "")]
        for seed in results.seeds:
            path = self.folder / f"tasks-{seed}.json"
            tasks = self._json(path, faults)
            if tasks and list(tasks) != results.tasks:
                faults.append(f"{path.name}: tasks {list(tasks)}, results.jsonl: {results.tasks}")
        crma = protocol.get("crma", {}) if isinstance(protocol.get("crma"), dict) else {}
        for name in ("displacement_budget", "data_budget"):
            if (said := getattr(results.run, name)) != (budget := crma.get(name)):
                faults.append(f"run.json: {name} {budget!r}, results.jsonl: {said!r}")
        known = {self.places.branch(seed, name) for seed in results.seeds for name in results.conditions}
        faults += [
            f"{path.name}: a folder of adapters that results.jsonl does not speak of"
            for path in sorted(self.folder.glob("[0-9]*-*"))
            if path.is_dir() and path not in known
        ]
        faults += [f"{name}: no phase writes such a file" for name in self._strangers(results)]
        for state in states:
            config, first = state.content.config, states[0]
            wanted = {field: crma[field] for field in _CONFIGS if field in crma}
            if wrong := [
                f"{field} {getattr(config, field)}" for field in wanted if getattr(config, field) != wanted[field]
            ]:
                faults.append(f"{state.name}: {', '.join(wrong)}, while the protocol has {wanted}")
            if state.content.state.bases.shape != first.content.state.bases.shape:
                faults.append(f"{state.name}: other layers or sizes than {first.name}")
            if state.content.base_model_sha256 != first.content.base_model_sha256:
                faults.append(f"{state.name}: architecture of another base model than {first.name}")
        return THE_RUN.holds("files belong to this run", "STATE-2", faults)

    def _strangers(self, results: RunResults) -> Iterator[str]:
        """Files among the adapters that belong to no phase of the run."""
        last = len(results.tasks) - 1
        for seed in results.seeds:
            for name in results.conditions:
                done = len(results.phases_of(name, seed))
                files = [self.places.files(seed, name, phase) for phase in range(min(done, last) + 1)]
                known = {path for of_phase in files for path in of_phase}
                known |= {lora / part for lora, *_ in files for part in (CONFIG, WEIGHTS)}
                known |= {self.places.checkpoint(seed, name)} if done <= last else set()
                found = sorted(self.places.branch(seed, name).rglob("*"))
                yield from (self._name(path) for path in found if path not in known)

    def _tensors(self, path: Path, faults: list[str]) -> dict[str, Tensor]:
        tensors = self._parsed(path, safetensors.torch.load, faults, limit=None)
        if tensors is None:
            return {}
        if not tensors:
            faults.append(f"{self._name(path)}: no tensor in it")
        faults += [f"{self._name(path)}: {name} is not finite" for name, t in tensors.items() if not t.isfinite().all()]
        return tensors

    def _json(self, path: Path, faults: list[str]) -> dict[str, Any]:
        content = self._parsed(path, parse_json, faults, limit=TEXT_LIMIT)
        if content is None or isinstance(content, dict):
            return content or {}
        faults.append(f"{self._name(path)}: no JSON object")
        return {}

    def _parsed(self, path: Path, parse: Callable[[bytes], Any], faults: list[str], limit: int | None) -> Any:
        """What a file holds; None, and a fault, where it cannot be read."""
        try:
            data = read_bytes(path, limit=limit, follow_links=False)
            self.digests[self._name(path)] = hashlib.sha256(data).hexdigest()
            return parse(data)
        except (OSError, ValueError, SafetensorError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            faults.append(f"{self._name(path)}: {reason}")
            return None

    def _digest(self, path: Path) -> None:
        self.digests[self._name(path)] = sha256_of(path, follow_links=False, to_load=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _settings_faults(
    settings: dict[str, Any], tensors: dict[str, Tensor], section: LoraSection, *, raised: bool
) -> Iterator[str]:
    """What in a LoRA's settings is not what the protocol trains: a file of the same tensors that answers otherwise."""
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    shapes = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    if shapes != {rank}:
        yield f"r {rank!r}, while the tensors have {sorted(shapes)}"
    if rank != section.rank and not (raised and isinstance(rank, int) and rank > section.rank):
        yield f"r {rank!r}, in the protocol {section.rank}"
    elif not isinstance(alpha, (int, float)) or not math.isclose(alpha / rank, section.alpha / section.rank):
        yield f"lora_alpha {alpha!r}, in the protocol {section.alpha} at rank {section.rank}"
    for name, value in settings.items():
        if name in _ANSWERS_OTHERWISE and value not in (None, False, "none", "LORA", {}, []):
            yield f"{name} {value!r}, which the training does not use"
