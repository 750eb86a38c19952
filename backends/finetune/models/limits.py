"""What a base model can do, by its configuration: how many tokens it knows, and how long a text may be.

Training, inference, plans and benches ask here. The configuration can be trusted, since a folder whose tensors have
other shapes than its configuration says is refused (:mod:`backends.finetune.models.weights`, and
:func:`backends.jax.decoder.weights.check_tensors`).
"""

from pathlib import Path
from typing import Any, NamedTuple

from reference.errors import ModelError, ProtocolError

#: transformers translates n_positions and n_ctx into the first; not all families have it
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions", "context_length")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class Limits(NamedTuple):
    """``vocabulary``: rows of the embedding, so that token ids lie below it. ``positions``: tokens of the longest text
    that the model was made for; None where it has no such limit (ALiBi)."""

    vocabulary: int
    positions: int | None

    def check_tokens(self, field: str, tokens: int, remedy: str) -> None:
        """Raises: ProtocolError if a text of so many ``tokens`` is longer than the model has positions for.

        Beyond them a table of positions has no row, and a rotary embedding turns by angles that were never trained.
        """
        if self.positions is not None and tokens > self.positions:
            raise ProtocolError(
                field,
                got=tokens,
                allowed=f"at most {self.positions} tokens, which is what the model has positions for",
                remedy=remedy,
            )

    def check_tokenizer(self, folder: Path, tokenizer: Any) -> None:
        """Raises: ModelError if the tokenizer can give a token that the embedding has no row for."""
        largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
        named = {name: getattr(tokenizer, name) for name in _SPECIAL}
        texts = [tokenizer("a b", add_special_tokens=special) for special in (False, True)]
        given = {
            f"the token {largest[0]!r}": largest[1],
            **{name: token for name, token in named.items() if token is not None},
            **{f"token {token} in a text": token for text in texts for token in text["input_ids"]},
        }
        for what, token in given.items():
            if type(token) is not int or not 0 <= token < self.vocabulary:
                raise ModelError(
                    f"tokenizer of {folder}",
                    got=f"{what} has the id {token}, and {len(tokenizer)} tokens in all",
                    allowed=f"ids from 0 to {self.vocabulary - 1}, as the model's embedding has {self.vocabulary} rows",
                    remedy="take the tokenizer that belongs to the model; or resize_token_embeddings and save both",
                )


def limits_of(config: Any) -> Limits:
    """The limits of a model with this configuration of transformers. Raises: ModelError where it has none."""
    text = config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    if type(vocabulary) is not int or vocabulary < 1:
        raise ModelError(
            "config.json: vocab_size",
            got=repr(vocabulary)[:100],
            allowed="an integer of at least 1",
            remedy="take a causal LM; or copy or download the model again",
        )
    named = {name: getattr(text, name, None) for name in _POSITIONS}
    for name, value in named.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ModelError(
                f"config.json: {name}",
                got=repr(value)[:100],
                allowed="an integer of at least 1",
                remedy="copy or download the model again",
            )
    for name in _SPECIAL:
        ids = getattr(text, name, None)
        if beyond := [token for token in (ids if isinstance(ids, list) else [ids]) if _is_beyond(token, vocabulary)]:
            raise ModelError(
                f"config.json: {name}",
                got=repr(beyond[0])[:100],
                allowed=f"an id below {vocabulary}, as vocab_size has it",
                remedy="check that config.json and the weights belong to the same model",
            )
    return Limits(vocabulary, min((value for value in named.values() if value is not None), default=None))


def _is_beyond(token: Any, vocabulary: int) -> bool:
    """Some published configurations have -1 for no token at all."""
    return token is not None and (type(token) is not int or token >= vocabulary)
