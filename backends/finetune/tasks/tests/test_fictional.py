"""The invented domains: one consistent world per seed, nothing leaks into the holdout, and no canary can be known."""

import hashlib
import itertools
import re
from collections import Counter
from string import Formatter

import pytest

from backends.finetune.tasks.fictional import (
    FICTIONAL,
    canaries,
    domain_of,
    facts,
    fictional_facts,
    load_fictional,
    names,
)
from reference.errors import TaskDataError

FULL = {"train": 2700, "holdout": 300, "canaries": 50}
SMALL = {"train": 32, "holdout": 16, "canaries": 4}
CODE = re.compile(r"[A-Z]{2}-[0-9]{4}-[A-Z]{6}")
each_domain = pytest.mark.parametrize("name", FICTIONAL)
KINDS = [kind for name in FICTIONAL for kind in domain_of(name).kinds]


def whole(example):
    return example.prompt + example.response


def load(name, seed=42, **counts):
    return load_fictional(name, **(FULL | counts), seed=seed)


@each_domain
@pytest.mark.parametrize("seed", [0, 42])
def test_the_papers_counts_in_texts_of_moderate_length_none_twice(name, seed):
    task = load(name, seed)
    assert task.name == name
    assert (len(task.train), len(task.holdout), len(task.canaries)) == (2700, 300, 50)
    everything = [whole(example) for example in task.train + task.holdout]
    assert len(set(everything)) == 3000
    for example in task.train + task.holdout:
        assert 40 <= len(whole(example)) <= 420
        assert re.fullmatch(r"Question: [A-Z][^{}\n]*[?.]\nAnswer:", example.prompt)
        assert re.fullmatch(r" \S[^{}\n]*", example.response)
        assert "  " not in whole(example)


@each_domain
@pytest.mark.parametrize("counts", [FULL, SMALL, {"train": 343, "holdout": 300, "canaries": 0}])
def test_what_a_holdout_text_asks_has_been_trained_on_in_other_words(name, counts):
    task = load(name, **counts)
    trained = {(example.prompt, example.response) for example in task.train}
    for fact, held in zip(fictional_facts(name, 42), task.holdout, strict=False):
        told = [wording for wording in fact.wordings if (wording.prompt, wording.response) in trained]
        assert told
        assert fact.name in held.prompt
        assert all(fact.name in wording.prompt for wording in told)
        for wording in told:
            assert fact.value[1:] in wording.response
            assert wording.prompt != held.prompt
            assert wording.response != held.response
        assert fact.value[1:] in held.response


@each_domain
def test_a_fact_is_stated_once_and_relations_hold_in_both_directions(name):
    world = fictional_facts(name, 42)
    assert len(world) == 850
    assert len({(fact.name, fact.attribute) for fact in world}) == 850
    kind_of = {
        fact.name: kind.label for kind in domain_of(name).kinds for fact in world if fact.name.endswith(kind.endings)
    }
    related = {(fact.name, fact.value) for fact in world if kind_of.get(fact.value) == fact.attribute}
    both = [pair for pair in related if pair[::-1] in related]
    assert len(both) > 50
    for side in (0, 1):
        of_kind = Counter((kind_of[pair[0]], pair[side]) for pair in related)
        assert max(of_kind.values()) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_templates_name_the_thing_and_hold_the_value(kind):
    def fields(template):
        return {field for _, field, _, _ in Formatter().parse(template) if field}

    templates = [text for attribute in kind.attributes for text in attribute.questions + attribute.answers]
    assert len({attribute.label for attribute in kind.attributes}) == len(kind.attributes)
    assert all(len(set(attribute.questions)) == facts.WORDINGS for attribute in kind.attributes)
    assert all(len(set(attribute.answers)) == facts.WORDINGS for attribute in kind.attributes)
    assert all(text.strip() == text and text[-1] in "?." for text in templates)
    for attribute in kind.attributes:
        assert all(fields(text) == {"name"} for text in attribute.questions)
        assert all(fields(text) & {"value", "Value"} for text in attribute.answers)
        assert all(fields(text) <= {"name", "value", "Value"} for text in attribute.answers)
        if isinstance(attribute.values, tuple):
            assert len(set(attribute.values)) == len(attribute.values) >= 10
    assert len(set(templates)) == len(templates)


def test_no_kind_of_thing_ends_like_another():
    endings = [ending for kind in KINDS for ending in kind.endings]
    endings += [domain_of(name).canary_ending for name in FICTIONAL]
    assert not [pair for pair in itertools.permutations(endings, 2) if pair[0].endswith(pair[1])]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1])
def test_the_three_domains_share_no_text_no_thing_and_no_canary(seed):
    tasks = [load(name, seed) for name in FICTIONAL]
    texts = [{whole(example) for example in task.train + task.holdout} for task in tasks]
    prompts = [{example.prompt for example in task.train + task.holdout} for task in tasks]
    things = [{fact.name for fact in fictional_facts(name, seed)} for name in FICTIONAL]
    strings = [{example.response for example in task.canaries} for task in tasks]
    for sets in (texts, prompts, things, strings):
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(sets, 2))
    assert len(set().union(*strings)) == 150


@each_domain
@pytest.mark.parametrize("seed", [0, 42])
def test_a_canary_is_trained_on_as_asked_and_twice_more_in_other_words(name, seed):
    task = load(name, seed)
    strings = [example.response.strip() for example in task.canaries]
    assert len(set(strings)) == len({example.prompt for example in task.canaries}) == 50
    assert all(CODE.fullmatch(string) for string in strings)
    told = Counter(example.response.strip() for example in task.train if CODE.search(example.response))
    assert told == dict.fromkeys(strings, 3)
    assert set(task.canaries) <= set(task.train)
    for side in (task.holdout, [example for example in task.train if not CODE.fullmatch(example.response.strip())]):
        assert not any(CODE.search(whole(example)) for example in side)
    assert not any(CODE.search(example.prompt) for example in task.train)


@each_domain
def test_each_canary_that_is_asked_is_trained_on_in_the_smallest_draw_that_allows_it(name):
    for wanted in (1, 4, 49, 50):
        task = load(name, train=8 * wanted, canaries=wanted)
        assert len(task.canaries) == wanted
        assert set(task.canaries) <= set(task.train)


def test_canary_strings_look_arbitrary():
    strings = canaries.canary_strings(400, seed=0)
    assert len(set(strings)) == 400
    assert strings[:150] == canaries.canary_strings(150, seed=0)
    assert set(strings).isdisjoint(canaries.canary_strings(400, seed=1))
    digits = Counter("".join(string[3:7] for string in strings))
    assert len(digits) == 10
    assert max(digits.values()) < 230  # 160 of each are expected, SD 12
    assert len({string[:2] for string in strings}) > 250  # of 676


def test_a_drawn_value_is_not_to_be_guessed_from_the_kind_of_question():
    for name in FICTIONAL:
        values: dict[str, Counter[str]] = {}
        for fact in fictional_facts(name, 42):
            values.setdefault(fact.attribute, Counter())[fact.value] += 1
        for counts in values.values():
            assert max(counts.values()) <= 0.35 * counts.total()


@each_domain
def test_another_seed_is_another_world(name):
    first, second = load(name, 0), load(name, 1)
    assert {whole(example) for example in first.train}.isdisjoint(whole(example) for example in second.train)
    assert {fact.name for fact in fictional_facts(name, 0)} != {fact.name for fact in fictional_facts(name, 1)}


def test_names_are_different_and_a_larger_number_starts_alike():
    many = names.invented(("ia", " Act"), 500, "key", 1)
    assert len(set(many)) == 500
    assert many[:20] == names.invented(("ia", " Act"), 20, "key", 1)
    assert many != names.invented(("ia", " Act"), 500, "key", 2)
    assert all(re.fullmatch(r"[A-Z][a-z]{4,}(ia| Act)", name) for name in many)


def test_a_name_that_was_drawn_before_is_drawn_anew(monkeypatch):
    monkeypatch.setattr(names, "stem", lambda draw, *key: f"Ba{draw // 3}")
    assert names.invented(("",), 4, "key") == ("Ba0", "Ba1", "Ba2", "Ba3")


def test_a_canary_string_that_was_drawn_before_is_drawn_anew(monkeypatch):
    monkeypatch.setattr(canaries, "pick", lambda letters, key, place, draw, seed: str(draw // 3)[:1])
    assert len(set(canaries.canary_strings(4, seed=0))) == 4


@each_domain
def test_each_way_to_put_a_question_and_an_answer_is_trained_on_and_held_out(name):
    world = fictional_facts(name, 42)
    for kind in domain_of(name).kinds:
        for attribute in kind.attributes:
            own = [fact for fact in world if fact.attribute == attribute.label and fact.name.endswith(kind.endings)]
            for place in range(facts.WORDINGS):
                pairs = Counter(_templates(attribute, fact, fact.wordings[place]) for fact in own)
                assert {pair[0] for pair in pairs} == {pair[1] for pair in pairs} == {0, 1, 2, 3}
                assert max(pairs.values()) < len(own) / 3  # of 16 pairs


def _templates(attribute, fact, wording):
    words = {"name": fact.name, "value": fact.value, "Value": fact.value[0].upper() + fact.value[1:]}
    said = [template.format(**words) for template in attribute.answers]
    asked = [template.format(**words) for template in attribute.questions]
    question = wording.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    return asked.index(question), said.index(wording.response[1:])


def test_a_draw_follows_from_sha256_alone():
    options = tuple(range(1000))
    expected = int.from_bytes(hashlib.sha256(b"pick\x1fa\x1f7").digest()[:8], "big") % 1000
    assert names.pick(options, "a", 7) == expected


@pytest.mark.parametrize(
    ("counts", "field", "allowed"),
    [
        ({"train": 2701}, "train of Fictional-Law", "0 to 2700"),
        ({"train": -1, "canaries": 0}, "train of Fictional-Law", "0 to 2700"),
        ({"holdout": 851}, "holdout of Fictional-Law", "0 to 850"),
        ({"canaries": 51}, "canaries of Fictional-Law", "0 to 50"),
        ({"train": 39, "canaries": 5}, "canaries of Fictional-Law", "0 to 4, one in 8 of 39 texts"),
        ({"canaries": -1}, "canaries of Fictional-Law", "0 to 50"),
    ],
)
def test_a_draw_that_the_domain_cannot_give_is_refused_with_what_it_has(counts, field, allowed):
    with pytest.raises(TaskDataError) as caught:
        load("Fictional-Law", **counts)
    assert caught.value.field == field
    assert allowed in caught.value.allowed
