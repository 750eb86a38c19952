"""Near duplicates: two texts are alike where they share runs of eight words."""

import hashlib
import re
from collections.abc import Iterable

from backends.finetune.tasks.domains.candidates import Candidate
from backends.finetune.tasks.task import Example

#: an example is dropped where this share of its 8-grams, or more, is in an example that was kept before
MOST_SHARED = 0.3
#: one document in this many is held out
HOLDOUT_EVERY = 4

Gram = tuple[str, ...]


def eight_grams(text: str) -> set[Gram]:
    """Runs of eight words, in lower case and without punctuation; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 8]) for start in range(max(1, len(words) - 7))}


def stable_hash(*parts: object) -> bytes:
    """A hash that is the same in every process and on every machine, unlike ``hash``."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()


def is_holdout(document: str) -> bool:
    """Side of a document: from its name alone, so that a test set stays clean whatever the seed."""
    return int.from_bytes(stable_hash("side", document)[:8], "big") % HOLDOUT_EVERY == 0


def split_pool(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Deal whole documents to training and holdout, and drop near duplicates across the whole domain.

    Training documents come first, so a holdout example is compared with every example that could ever be trained on,
    and has less than ``MOST_SHARED`` of its 8-grams in them. That holds of the whole text and of the response alone,
    since the question is partly a template. The order is that of a hash of the document, then of the source.

    Returns:
        the examples that may be trained on, and those held out.
    """
    by_document: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_document.setdefault(candidate.document, []).append(candidate)
    documents = sorted(by_document, key=lambda document: (is_holdout(document), stable_hash("order", document)))
    seen: set[Gram] = set()
    train: list[Candidate] = []
    holdout: list[Candidate] = []
    for document in documents:
        for candidate in by_document[document]:
            if not _is_repeat(candidate.example, seen):
                (holdout if is_holdout(document) else train).append(candidate)
    return train, holdout


def _is_repeat(example: Example, seen: set[Gram]) -> bool:
    whole, response = eight_grams(example.prompt + example.response), eight_grams(example.response)
    if any(len(grams & seen) >= MOST_SHARED * len(grams) for grams in (whole, response)):
        return True
    seen |= whole | response
    return False
