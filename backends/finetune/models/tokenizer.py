"""A tokenizer for models with random weights: bytes and merges, trained on this project's own specification."""

from pathlib import Path
from typing import Any

import spec

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
SPECIAL = {"pad_token": PAD, "bos_token": BEGIN, "eos_token": END}  # ids 0, 1, 2
LARGEST = 4096  # tokens; fewer than any model of the zoo has


def training_text() -> list[str]:
    """The pages of the specification, in the order of their names."""
    pages = sorted(Path(spec.__file__).parent.glob("*.md"))
    return [page.read_text(encoding="utf-8") for page in pages]


def train_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE as a fast tokenizer of transformers: any text can be encoded and comes back as it was.

    The same text gives the same tokenizer. A text begins with a token of its own, as in Llama, Mistral and Gemma.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
