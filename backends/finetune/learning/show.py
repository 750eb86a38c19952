"""What a model is fed: the tokens of examples, and which of them are learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from backends.finetune.learning.data import read_examples
from backends.finetune.models.folder import load_tokenizer
from backends.finetune.tasks.chat import Chat
from backends.finetune.tasks.encoding import IGNORED, EncodedExample, encode
from reference.errors import ConfigError

READ, LEARNED = ("dim", "dim reverse"), ("bold green", "bold green reverse")  # neighbouring tokens take turns


def shown_examples(
    data: str | Path,
    model: Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    template: str = "auto",
    count: int = 3,
    coloured: bool = True,
) -> list[Text]:
    """The first examples as their tokens, one behind the other, with a line that counts them.

    Args:
        template: as in a protocol. coloured: whether colours mark what is learned; if not, brackets ⟦ ⟧ do.

    Raises: as :func:`read_examples` and :class:`Chat`; ConfigError for a count below 1.
    """
    if count < 1:
        raise ConfigError("--count", got=count, allowed="an integer >= 1", remedy="use 3")
    tokenizer = load_tokenizer(model)
    chat = Chat(tokenizer, template)
    examples = [read.example for read in read_examples(data, columns, split)[:count]]
    encoded = encode(examples, tokenizer, 2**24, task=Path(data).name, chat=chat)
    return [_of_example(example, shown, tokenizer, coloured) for example, shown in zip(examples, encoded, strict=True)]


def _of_example(example: Any, encoded: EncodedExample, tokenizer: Any, coloured: bool) -> Text:
    labels = [IGNORED, *encoded.labels[1:]]  # the first token is predicted from nothing
    learned = [label != IGNORED for label in labels]
    text = Text(f"{example.place}: {len(labels)} tokens, of which {sum(learned)} are learned\n", style="bold")
    before = False
    for place, (token, is_learned) in enumerate(zip(encoded.ids, learned, strict=True)):
        if not coloured and is_learned != before:
            text.append("⟦" if is_learned else "⟧")
        written = tokenizer.decode([token]).replace("\n", "⏎\n")
        text.append(written, style=(LEARNED if is_learned else READ)[place % 2] if coloured else "not bold")
        before = is_learned
    text.append("⟧\n" if before and not coloured else "\n")
    return text
