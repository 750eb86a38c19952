"""TRL's SFTTrainer with the adapters: it makes the PEFT model itself, and so freezes them."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("trl", reason="needs TRL: pip install 'crma[trl]'")
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from backends.torch import CRMABackbone, attach_crma, load_state
from backends.torch.conftest import tiny_model
from backends.torch.save_pretrained import STATE_FILE
from backends.torch.trainer import CRMACallback
from reference.errors import ModelError

WORDS = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(57))]
TEXTS = Dataset.from_dict({"text": [" ".join(WORDS[3 + i : 11 + i]) for i in range(16)]})


def trainer(folder: Path, steps: int = 2, **changed: Any) -> tuple[SFTTrainer, CRMABackbone]:
    """SFTTrainer wraps a model that carries CRMA in LoRA."""
    model = tiny_model("llama")
    backbone = attach_crma(model)
    settings: dict[str, Any] = {
        "max_steps": steps, "save_steps": 2, "learning_rate": 0.1, "per_device_train_batch_size": 2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "max_length": 16, "bf16": False, "lr_scheduler_type": "constant",
    }  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = SFTTrainer(
        model=model,
        args=SFTConfig(str(folder), **settings | changed),
        train_dataset=TEXTS,
        eval_dataset=TEXTS,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        ),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[CRMACallback(backbone)],
    )
    return made, backbone


@pytest.mark.clause("ERR-4")
def test_adapters_that_sft_trainer_froze_are_refused(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path)
    with pytest.raises(ModelError, match=r"frozen in 2 of 2 layers.*SFTTrainer with peft_config"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.clause("STATE-1")
def test_sft_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    run, whole = trainer(tmp_path, 4, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    start = whole.requires_grad_(True).state()
    run.train()
    best = Path(str(run.state.best_model_checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(whole.state(), load_state(best / STATE_FILE).state, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole.state(), start, strict=True))
    last = load_state(tmp_path / "checkpoint-4" / STATE_FILE).state
    again, resumed = trainer(tmp_path, 4)
    resumed.requires_grad_(True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.state(), last, strict=True))
    again.save_model(str(tmp_path / "final"))
    base = tiny_model("llama")
    backbone = attach_crma(base, seed=9)
    backbone.load(tmp_path / "final" / STATE_FILE)
    loaded = PeftModel.from_pretrained(base, tmp_path / "final").eval()
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, again.model.eval()(input_ids=ids).logits)
