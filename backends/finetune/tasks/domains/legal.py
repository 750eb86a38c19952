"""Legal: paragraphs of the licences on the SPDX License List. A document is one licence text."""

import gzip
import json
import re
from collections.abc import Iterator

from backends.finetune.tasks.domains.candidates import LONGEST, SHORTEST, Candidate, fits, question
from backends.finetune.tasks.domains.packages import package_file
from backends.finetune.tasks.domains.prose import flatten, passages

#: the first of these that a paragraph speaks of is what the question asks about
_TOPICS = {
    "patents": r"\bpatents?\b",
    "trademarks and names": r"\b(trademarks?|trade names?|logos?|endorse)\b",
    "warranties": r"\bwarrant(y|ies)\b|\bas is\b",
    "liability": r"\bliab(le|ility)\b|\bdamages\b",
    "termination": r"\bterminat(e|es|ed|ion)\b",
    "governing law": r"\b(jurisdiction|governed by|courts?|laws? of)\b",
    "source code": r"\bsource code\b|\bsource form\b",
    "modified versions": r"\b(modif(y|ied|ication|ications)|derivative works?|adaptations?)\b",
    "copyright notices": r"\bnotices?\b|\backnowledg|\battribution\b",
    "redistribution": r"\b(re)?distribut(e|es|ed|ion|ing)\b|\bcop(y|ies)\b",
    "fees": r"\b(fees?|charge|royalt(y|ies)|payment)\b",
    "contributions": r"\bcontribut(ion|ions|or|ors)\b",
    "use of the work": r"\b(use|permission|licen[cs]e)\b",
}
_NUMBERING = re.compile(
    r"^\W*(?:(?:(?:section|article|§)\s*)?(?:\d+(?:\.\d+)+[.):]*|\(?(?:[a-z]|[ivx]+)[.):]+)\s+|\(?\d+[.):]+\s*)+",
    re.IGNORECASE,
)


def candidates() -> Iterator[Candidate]:
    """Passages of each paragraph; the question names the licence and the subject."""
    with gzip.open(package_file("licenseid", "data/spdx-bundle.json.gz"), "rt", encoding="utf-8") as file:
        licences = json.load(file)["licenses"]
    for licence in sorted(licences, key=lambda entry: entry["licenseId"]):
        name = re.sub(r"^The ", "", flatten(licence["name"]))
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:\d+\.|\([a-z0-9]\)|[*•-])\s)", licence.get("text") or ""):
            text = _NUMBERING.sub("", flatten(re.sub(r"(?m)^\s*(?://|#|\*|;)+\s?", "", paragraph)))
            longest_question = f"What does the {name} say about trademarks and names?"
            room = len(question(longest_question, "").prompt) + 1
            for passage in passages(text, SHORTEST - room, LONGEST - room):
                if topic := next((topic for topic, words in _TOPICS.items() if re.search(words, passage, re.I)), None):
                    asked = f"What does the {name} say about {topic}?"
                    if fits(example := question(asked, passage)):
                        yield Candidate(licence["licenseId"], example)
