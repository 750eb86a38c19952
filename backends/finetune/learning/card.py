"""The model card of an exported task: what it is, from which data, what was measured, how it is loaded."""

from huggingface_hub import ModelCard, ModelCardData

from backends.finetune.report.labels import RANDOM_WEIGHTS, percent
from backends.finetune.runs.assistant_folder import Assistant

_TEXT = """---
{{ card_data }}
---
# {{ title }}

{{ lead }}

{{ warning }}

## How to load it

```python
from backends.finetune import load_task  # pip install 'crma[finetune]'

model, tokenizer = load_task("FOLDER-OR-REPO"{{ base }})
```

`model` is a causal language model of transformers, for `generate`, `pipeline("text-generation", model=model,
tokenizer=tokenizer)` or an evaluation harness. {{ alone }}

## What was measured

{{ measured }}

Losses are in nats per answer token, on {{ reported }} texts of the task that were neither trained on nor used to choose
anything. Exact match is the share of answers that greedy decoding gives word for word.

## What is bounded

{{ bounds }}

## How it was made

{{ made }}
"""


def model_card(found: Assistant, task: str, *, merged: bool) -> str:
    """The card as Markdown, with the metadata that the Hub reads."""
    taught = found.tasks[task]
    record = taught.record
    rows = [("bare base model", record.bare), ("after its own phase", record.own), ("now", taught.now)]
    table = ["| | loss | exact match |", "|---|---|---|"]
    table += [f"| {name} | {each.loss:.4f} | {100 * each.exact_match:.0f}% |" for name, each in rows]
    later = len(found.learned) - 1 - record.phase
    change = percent(100 * (taught.now.loss / record.own.loss - 1))
    table.append(f"\n{later} later {'task was' if later == 1 else 'tasks were'} learned since; the change is {change}"
                 + ("." if change == "0 exactly" else "%."))  # fmt: skip
    card = ModelCard.from_template(
        ModelCardData(
            base_model=found.model, library_name="peft" if not merged else "transformers", tags=["crma", "lora"]
        ),
        template_str=_TEXT,
        title=f"{task}, on {found.model}",
        lead=f"A task that {found.model} was taught as number {record.phase + 1} of {len(found.learned)}, by a LoRA "
        "adapter of its own and a CRMA (Constrained Residual Mixing Adapter), a small residual adapter that the tasks "
        "share and whose mixing matrix is doubly stochastic."
        + (" The LoRA is merged into the weights here." if merged else ""),
        warning=f"**{RANDOM_WEIGHTS}**" if found.random_weights else "",
        base="" if merged else ', base="FOLDER OF THE BASE MODEL"',
        alone="Loaded by transformers alone it answers without its CRMA, which it was trained with."
        if merged
        else "The LoRA by itself is not the whole of it: PEFT warns where it is loaded without the CRMA.",
        measured="\n".join(table),
        reported=record.texts["holdout"].texts,
        bounds=_bounds(found, taught.version),
        made=_made(found, task),
    )
    return str(card.content)


def _bounds(found: Assistant, version: int) -> str:
    log = found.learned[version].spectral
    if log is None or not log.steps:
        return "No certificate was logged."
    moved = log.displacement_max[-1]
    crma = found.learned[version].config.get("crma", {})
    budget, epsilon = crma.get("displacement_budget"), crma.get("data_budget")
    said = (
        f"The CRMA that the task answers with was certified at its last step, over all layers: the spectral norm of "
        f"the mixing matrix is at most {log.norm_max[-1]:.7f}, and no singular value of the adapter exceeds "
        f"{log.adapter_max[-1]:.7f}, so that it amplifies nothing (up to rounding)."
    )
    if moved is not None:
        said += f" No layer is further than {moved:.4g} from its state after the first task"
        said += f" (the budget was {budget:g})." if budget is not None else "."
        if epsilon is not None:
            said += f" What earlier tasks' training tokens see of that, as a root mean square, is at most {epsilon:g}."
    return said


def _made(found: Assistant, task: str) -> str:
    record = found.tasks[task].record
    lora = found.protocol.lora
    held = ", and was held near its answers" if record.distilled else ""
    start = f" It started from the LoRA of {record.start}{held}." if record.start else ""
    return (
        f"Trained on {record.texts['train'].texts} texts of {record.data['name']} (SHA-256 of their digests "
        f"{record.data['sha256'][:16]}…), {len(record.losses)} steps, LoRA of rank {lora.rank}, alpha {lora.alpha:g}, "
        f"learning rate {record.config['lora']['learning_rate']:g}, with {record.backend} on {record.machine}, "
        f"{record.time[:10]}.{start}"
    )
