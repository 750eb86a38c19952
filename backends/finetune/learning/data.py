"""What is taught: the examples of a file or dataset, and which of them are trained on, decide, and are reported."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from backends.files import parse_json
from backends.finetune.protocols.text_file import read_text
from backends.finetune.tasks.chat import Message
from backends.finetune.tasks.data_files import read_rows
from backends.finetune.tasks.domains import load_domain
from backends.finetune.tasks.domains.deduplication import stable_hash
from backends.finetune.tasks.fictional import FICTIONAL, load_fictional
from backends.finetune.tasks.named import NAMED
from backends.finetune.tasks.task import Example, example_of, normal_text
from reference.errors import RunFolderError, TaskDataError

#: of the examples, and at most how many: what is reported, and what decides
REPORTED, DECISION = (0.15, 96), (0.10, 32)
OF_A_DOMAIN = 96  # examples of a domain that comes with this project
QUERIES = 200  # questions of a task that a router learns it by


class Read(NamedTuple):
    """An example, and the document it comes from: what is split is split between documents."""

    example: Example
    document: str


class Splits(NamedTuple):
    """``left_out``: examples with the text of one that measures a task, which are therefore not trained on."""

    train: tuple[Example, ...]
    decision: tuple[Example, ...]
    reported: tuple[Example, ...]
    left_out: int = 0


class Texts(NamedTuple):
    """What the folder keeps of a task's texts: the held-out ones, some questions, and digests of those trained on."""

    decision: tuple[Example, ...]
    reported: tuple[Example, ...]
    queries: tuple[str, ...]
    trained: frozenset[str]


def read_examples(source: str | Path, columns: Mapping[str, str] | None = None, split: str = "train") -> list[Read]:
    """The examples of a file, a folder, a dataset, or a domain that comes with this project, such as "Medical".

    Args:
        columns: see :func:`backends.finetune.tasks.shapes.parts_of`; "document" among them names the field that says
            which document a row is from. Without it rows that ask the same are one document.
        split: of a dataset with several.

    Raises: TaskDataError, which names file, row and field; MissingPackageError. Clauses: ERR-1, ERR-2.
    """
    if str(source) in NAMED and not Path(source).exists():
        return [Read(example, normal_text(example.query)) for example in _of_domain(str(source))]
    field = (columns or {}).get("document")
    named = {name: column for name, column in (columns or {}).items() if name != "document"}
    found = []
    for where, row in read_rows(source, split=split):
        example = example_of(row, where, named)
        if field is not None and field not in row:
            raise TaskDataError(
                where,
                got=f"no field {field!r}",
                allowed="the field that --columns names",
                remedy="correct document=...",
            )
        found.append(Read(example, str(row[field]) if field is not None else normal_text(example.query)))
    return found


def _of_domain(name: str) -> tuple[Example, ...]:
    if name in FICTIONAL:
        return load_fictional(name, train=OF_A_DOMAIN, holdout=0, canaries=0, seed=0).train
    return load_domain(name, train=OF_A_DOMAIN, holdout=0, seed=0).train


def split_examples(
    read: Sequence[Read], held_out: Sequence[Example] = (), earlier: Mapping[str, Texts] | None = None
) -> Splits:
    """Deal whole documents to what is trained on, decides and is reported.

    The order is that of a hash of the document, so the split does not depend on that of the rows. A text that this task
    or an ``earlier`` one is measured by is left out of the training, whichever document has it; one that an earlier
    task was trained on is not held out.

    Args:
        held_out: what is reported, where it comes from a file of its own.

    Raises: TaskDataError where nothing would remain on one of the three sides.
    """
    known = earlier or {}
    held_out = list({normal_text(example.text): example for example in held_out}.values())
    measured = {normal_text(e.text) for texts in known.values() for e in (*texts.decision, *texts.reported)}
    measured |= {normal_text(example.text) for example in held_out}
    trained = {digest for texts in known.values() for digest in texts.trained}
    for example in held_out:
        if digest_of(example) in trained:
            raise TaskDataError(
                example.place or "--holdout",
                got="a text that an earlier task was trained on",
                allowed="texts that nothing in the folder was trained on, since they are to measure",
                remedy="take it out of the holdout file",
            )
    documents: dict[str, list[Example]] = {}
    left_out = 0
    for example, document in read:
        if normal_text(example.text) in measured:
            left_out += 1
        else:
            documents.setdefault(document, []).append(example)
    order = sorted(documents, key=lambda document: stable_hash("learn", document))
    sizes: dict[str, int] = {}  # of the documents that may be held out: texts that no document before has
    seen: set[str] = set()
    for document in order:
        texts = {normal_text(example.text) for example in documents[document]}
        if texts - seen and not any(digest_of(example) in trained for example in documents[document]):
            sizes[document] = len(texts - seen)
        seen |= texts
    side_of = _dealt(sizes, [0 if held_out else _share(len(seen), *REPORTED), _share(len(seen), *DECISION)])
    sides: list[list[Example]] = [held_out, []]
    out: set[str] = set()
    for document, side in side_of.items():
        for example in documents[document]:  # what is held out twice would count twice
            if (text := normal_text(example.text)) not in out:
                out.add(text)
                sides[side].append(example)
    rest = [example for document in order if document not in side_of for example in documents[document]]
    train = [example for example in rest if normal_text(example.text) not in out]
    left_out += len(rest) - len(train)
    reported, decision = sides
    if not (train and reported and decision):
        again = sum(digest_of(example) in trained for example, _ in read)
        known_to = f", of which {left_out} measure a task and {again} were trained on by an earlier one"
        raise TaskDataError(
            "data",
            got=f"{len(read)} example{'' if len(read) == 1 else 's'}" + (known_to if left_out + again else ""),
            allowed="new examples of at least three documents: to learn, to decide by and to report",
            remedy="add examples that ask something else; with --holdout FILE two documents are enough",
        )
    place = {id(example): number for number, (example, _) in enumerate(read)}
    return Splits(tuple(sorted(train, key=lambda e: place[id(e)])), tuple(decision), tuple(reported), left_out)


def _dealt(sizes: Mapping[str, int], wanted: Sequence[int]) -> dict[str, int]:
    """The side of each document that is held out, 0 reported and 1 decision: in the order given, what fits into the
    ``wanted`` texts of a side; where nothing fits into one, the smallest documents, one a side."""
    left = list(wanted)
    dealt: dict[str, int] = {}
    for document, size in sizes.items():
        if (side := next((side for side in (0, 1) if size <= left[side]), None)) is not None:
            dealt[document] = side
            left[side] -= size
    asked = [side for side in (0, 1) if wanted[side]]
    if set(dealt.values()) == set(asked):
        return dealt
    return dict(zip(sorted(sizes, key=lambda document: sizes[document]), asked, strict=False))


def _share(count: int, share: float, most: int) -> int:
    return max(1, min(round(share * count), most))


def digest_of(example: Example) -> str:
    """By which a text is known again where it is not kept."""
    return hashlib.sha256(normal_text(example.text).encode()).hexdigest()[:16]


def texts_file(splits: Splits) -> bytes:
    """What :class:`Texts` are read from: a line of JSON each."""
    lines = [
        {"split": split, "prompt": e.prompt, "response": e.response, "messages": [list(m) for m in e.messages]}
        for split in ("decision", "reported")
        for e in getattr(splits, split)
    ]
    chosen = sorted(splits.train, key=lambda example: stable_hash("query", example.text))[:QUERIES]
    queries = [{"split": "query", "text": example.query} for example in chosen]
    trained = [{"split": "trained", "text": digest} for digest in sorted({digest_of(e) for e in splits.train})]
    return b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, *queries, *trained])


def read_texts(path: Path) -> Texts:
    """What :func:`texts_file` gave. Raises: RunFolderError."""
    sides: dict[str, list] = {"decision": [], "reported": [], "query": [], "trained": []}
    try:
        for line in read_text(path, RunFolderError).splitlines():
            entry = parse_json(line)
            if "text" in entry:
                sides[entry["split"]].append(entry["text"])
            else:
                messages = tuple(Message(role, content) for role, content in entry["messages"])
                sides[entry["split"]].append(Example(entry["prompt"], entry["response"], messages=messages))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            str(path),
            got=f"{type(error).__name__}: {error}",
            allowed="the texts that `crma learn` wrote",
            remedy="restore the file from a copy, or forget its task and teach it again",
        ) from error
    return Texts(tuple(sides["decision"]), tuple(sides["reported"]), tuple(sides["query"]), frozenset(sides["trained"]))
