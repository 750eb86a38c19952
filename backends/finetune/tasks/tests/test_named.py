"""Tasks by name, real and invented: the same data in every process, and those that results were recorded on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.finetune.protocols.protocol import load_protocol
from backends.finetune.tasks.domains import DOMAINS, load_domain
from backends.finetune.tasks.fictional import FICTIONAL, fictional_facts, load_fictional
from backends.finetune.tasks.named import NAMED, PARTS, domain_of, drawn_order, is_named, named_task
from backends.finetune.tasks.task import fingerprint
from backends.finetune.tasks.tests.test_domains import missing_packages, needs_packages
from reference.errors import TaskDataError

ROOT = Path(__file__).parents[4]
REAL = {"train": 500, "holdout": 100, "seed": 0}
INVENTED = {"train": 2700, "holdout": 300, "canaries": 50, "seed": 42}
HERE = [name for name in NAMED if name in (*FICTIONAL, "Code") or not any(missing_packages())]


def each(names):
    """Parametrized over tasks; those that read the packages of assets.txt are marked so."""
    marks = [pytest.mark.needs_model, needs_packages]
    free = (*FICTIONAL, "Code")
    return pytest.mark.parametrize(
        "name", [name if name in free else pytest.param(name, marks=marks) for name in names]
    )


#: fingerprints; change one only on purpose: results recorded on the old data can then no longer be compared with new
#: ones. Code has none, since it depends on the version of Python.
RECORDED = {
    "Medical": "3a051fd77558b288",
    "Legal": "473ce521f549dc46",
    "Financial": "921b2bd8028f47aa",
    "Science": "bef09324fcb31663",
    "Fictional-Medicine": "1a36873aac12b2e5",
    "Fictional-Company": "cd89c73430730fed",
    "Fictional-Law": "84aa2ef3ba8311fc",
}


def draw(name, **changes):
    return load_fictional(name, **INVENTED | changes) if name in FICTIONAL else load_domain(name, **REAL | changes)


@each(RECORDED)
def test_the_data_are_those_that_results_were_recorded_on(name):
    assert fingerprint(draw(name))[:16] == RECORDED[name]


@each(NAMED)
def test_a_larger_draw_starts_with_the_smaller_one(name):
    fewer = {"train": 32, "holdout": 16} | ({"canaries": 4} if name in FICTIONAL else {})
    small, large = draw(name, **fewer), draw(name)
    assert (len(small.train), len(small.holdout), len(small.canaries)) == (32, 16, fewer.get("canaries", 0))
    assert large.train[:32] == small.train
    assert large.holdout[:16] == small.holdout
    assert large.canaries[: len(small.canaries)] == small.canaries


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_processes_with_different_hash_seeds_draw_the_same(hash_seed):
    program = (
        "import sys\n"
        "from backends.finetune.tasks.tests.test_named import draw, fingerprint\n"
        "print(*(fingerprint(draw(name)) for name in sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program, *HERE], env=environment, capture_output=True, text=True, check=True, timeout=240
    )
    assert process.stdout.split() == [fingerprint(draw(name)) for name in HERE]


@pytest.mark.parametrize(("load", "known"), [(load_domain, DOMAINS), (load_fictional, FICTIONAL)])
def test_an_unknown_name_is_refused_with_the_known_ones(load, known):
    canaries = {"canaries": 0} if load is load_fictional else {}
    with pytest.raises(TaskDataError, match=", ".join(known)):
        load(known[0].lower(), train=1, holdout=1, seed=0, **canaries)


@pytest.mark.parametrize("domain", ["Fictional-Law", "Code"])
def test_the_parts_of_a_domain_share_no_text_and_the_first_is_the_domain(domain):
    protocol = load_protocol("recurring", ["train=24", "holdout=12", "decision=4"])
    whole, *parts = (
        named_task(protocol, name, 3) for name in (domain, *(f"{domain} {part}" for part in ("I", "II", "III")))
    )
    assert [task.name for task in parts] == [f"{domain} I", f"{domain} II", f"{domain} III"]
    assert (parts[0].train, parts[0].holdout, parts[0].decision) == (whole.train, whole.holdout, whole.decision)
    texts = [text for task in parts for side in (task.train, task.holdout, task.decision) for text in side]
    assert len({(text.prompt, text.response) for text in texts}) == len(texts) == 3 * (24 + 12 + 4)


def test_a_part_is_asked_what_it_was_taught():
    """Each fact of the holdout texts, in another wording, is one that the part's training texts state."""
    protocol, facts = load_protocol("recurring"), fictional_facts("Fictional-Company", 5)
    for part in range(3):
        task = named_task(protocol, f"Fictional-Company {PARTS[part]}", 5)
        own = facts[84 * part : 84 * (part + 1)]
        assert list(task.holdout) == [fact.wordings[3] for fact in own]
        assert {fact.wordings[0] for fact in own} <= set(task.train)


def test_what_is_no_part_keeps_its_name():
    assert [domain_of(name) for name in ("Legal II", "Legal", "Legal IV", "mine II")] == [
        "Legal",
        "Legal",
        "Legal IV",
        "mine II",
    ]
    assert is_named("Fictional-Law III")
    assert not is_named("Law III")


def test_a_drawn_order_has_the_parts_in_turn():
    names = load_protocol("recurring").tasks
    orders = [drawn_order(names, seed) for seed in range(30)]
    assert len({tuple(order) for order in orders}) == 30
    for order in orders:
        assert sorted(order) == list(range(len(names)))
        for domain in FICTIONAL:
            assert [names[i] for i in order if domain_of(names[i]) == domain] == [
                f"{domain} {part}" for part in ("I", "II", "III")
            ]
