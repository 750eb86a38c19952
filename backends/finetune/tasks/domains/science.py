"""Science: descriptions of databases and ontologies in the Bioregistry. A document is one record."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from backends.finetune.tasks.domains.candidates import Candidate, answers
from backends.finetune.tasks.domains.packages import package_file
from backends.finetune.tasks.domains.prose import flatten


def candidates() -> Iterator[Candidate]:
    """What a resource is: the beginning of each of the descriptions that its record merges."""
    with package_file("bioregistry", "data/bioregistry.json").open(encoding="utf-8") as file:
        records: dict[str, dict[str, Any]] = json.load(file)
    for prefix, record in sorted(records.items()):
        asked = f"What is the scientific resource {_name(record)}?"
        for text in _texts(record, "description"):
            for example in islice(answers(asked, text), 1):
                yield Candidate(prefix, example)


def _texts(record: dict[str, Any], field: str) -> list[str]:
    own = [record.get(field)]
    # only other registries have a prefix; names of contact persons stay out
    merged = [
        source.get(field) for _, source in sorted(record.items()) if isinstance(source, dict) and "prefix" in source
    ]
    return [re.sub(r"\[(.*?)\]\(\S*?\)", r"\1", text) for text in own + merged if isinstance(text, str) and text]


def _name(record: dict[str, Any]) -> str:
    return flatten(_texts(record, "name")[0]) if _texts(record, "name") else record["prefix"]
