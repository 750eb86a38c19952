"""The token ids of a prompt, and of a prompt with its answer: one text, whose beginning is what inference reads.

Prompt and answer are tokenized together, so that nothing stands between them that the text does not hold (Llama-2,
Mistral and Phi-3 begin every text that is tokenized by itself with a space of their own). The prompt's share is
measured by tokenizing the prompt alone: the ids of the whole have to begin with its ids.

**The rule at the boundary.** Where they do not, a token of the whole covers the end of the prompt and the beginning
of the answer, as " yes" does in "Answer: " + "yes". Then the text is tokenized in two pieces that meet at the boundary,
the second as the continuation of a text. So every token belongs to the prompt or to the answer, the whole answer is
learned and nothing of the prompt, and training reads exactly the ids that inference reads, which has no answer to merge
them with.

TRL and litgpt measure the prompt in the same way; where the ids differ, they warn or train on others than
inference reads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

#: what an answer is put behind to be tokenized as a continuation; one of them merges with no text that begins so
_ANCHORS = ("\n", ".", "a", "0", "|")


class Ids(NamedTuple):
    """``split``: the prompt ends where no token of the whole text ends."""

    prompt: list[int]
    answer: list[int]
    split: bool = False


class UnusableText(ValueError):
    """A text that nothing can be learned from, or that says twice where it begins or ends."""


class TokenIds:
    """Of one tokenizer, fast or slow.

    Every text begins with the tokens that the tokenizer puts before every text (beginning-of-text, [CLS], ...), and a
    text without a prompt at least with its beginning-of-text token if it has one, so that its first token is predicted
    from something. Every answer ends with its end-of-text token. A text that brings either itself gets no second one,
    whatever the tokenizer's settings ``add_bos_token`` and ``add_eos_token`` are.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bare, framed = self._ids("a"), list(tokenizer("a")["input_ids"])
        starts = range(len(framed) - len(bare) + 1)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        start = next((start for start in starts if bare and framed[start : start + len(bare)] == bare), 0)
        self._opening = framed[:start]
        self._beginning = self._opening or ([] if bos is None else [bos])
        self._end = framed[start + len(bare) :] if eos is None else [eos]

    def prompt(self, text: str) -> list[int]:
        """What inference reads: the ids that every training example with this prompt begins with.

        Raises: UnusableText for no token at all, or two beginnings.
        """
        return self.before([text])

    def before(self, texts: Sequence[str]) -> list[int]:
        """The same for what stands before an answer in several pieces, of which a conversation consists."""
        parts, _ = self._pieces(texts)
        ids = [token for part in parts for token in part]
        ids = [*self._missing_opening("".join(texts), ids, has_prompt=bool(ids)), *ids]
        if not ids:
            raise UnusableText("an empty text")
        return ids

    def example(self, prompt: str, response: str) -> Ids:
        """Prompt and answer with their beginning and end. Raises: UnusableText."""
        text = prompt + response
        (before, answer), split = self._pieces([prompt, response])
        if not any(token not in self._end for token in answer):
            raise UnusableText("a response without a token")
        opening = self._missing_opening(text, [*before, *answer], has_prompt=bool(before))
        answer += self._missing_end(response, answer)
        if not before and not opening:  # the beginning that the response brings is read, not learned
            before, answer = answer[: len(self._beginning)], answer[len(self._beginning) :]
        return Ids([*opening, *before], answer, split)

    def conversation(self, texts: Sequence[str], *, ended: bool) -> tuple[list[list[int]], bool]:
        """The ids of each piece of a conversation, and whether any of them begins within a token of the whole.

        ``ended``: the last answer brings the end of its turn. Raises: UnusableText.
        """
        parts, split = self._pieces(texts)
        opening = self._missing_opening(
            "".join(texts), [token for part in parts for token in part], has_prompt=bool(parts[0])
        )
        parts[0] = [*opening, *parts[0]]
        if not ended:
            parts[-1] = parts[-1] + self._missing_end(texts[-1], parts[-1])
        return parts, split

    def _pieces(self, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
        """By the rule at the boundary, from each piece to the next."""
        done, split = "", False
        ids: list[int] = []
        parts: list[list[int]] = []
        for text in texts:
            done += text
            whole = self._ids(done)
            if whole[: len(ids)] == ids:
                part = whole[len(ids) :]
            else:
                part, split = self._continuation(text), True
            parts.append(part)
            ids = [*ids, *part]
        return parts, split

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _continuation(self, text: str) -> list[int]:
        for anchor in _ANCHORS:
            before, whole = self._ids(anchor), self._ids(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        raise UnusableText("a response that this tokenizer cannot part from its prompt")

    def _missing_opening(self, text: str, ids: list[int], *, has_prompt: bool) -> list[int]:
        """What is to be put before a text with these ids."""
        start = self._beginning
        if start and ids[: 2 * len(start)] == 2 * start:
            raise UnusableText("a text that begins with the beginning-of-text token twice")
        bare = text.lstrip()
        begun = bool(start) and (ids if bare == text else self._ids(bare))[: len(start)] == start
        return [] if begun else self._opening if has_prompt else start

    def _missing_end(self, response: str, ids: list[int]) -> list[int]:
        """What is to be put after an answer with these ids. White space may follow the end that it brings."""
        end, bare = self._end, response.rstrip()
        last = ids if bare == response else self._ids(bare)
        if end and last[-2 * len(end) :] == 2 * end:
            raise UnusableText("a response that ends with the end-of-text token twice")
        return [] if end and last[-len(end) :] == end else end
