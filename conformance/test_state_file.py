"""State files: a port reads what the specification describes, refuses what is damaged, and writes what others can read.

Clauses: STATE-1, STATE-2, STATE-4, STATE-5.
"""

import gc
import itertools
import json
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.interface import State
from backends.state_file import decode_state
from conformance.agreement import fails, require
from conformance.golden_vectors.state_files import CONFIG, state_arrays, state_file, taken_apart
from conformance.state_variants import FAMILIES, LARGE_K, large_arrays, large_file, legal_files
from conformance.strategies import SEEDS
from reference import SPEC_VERSION
from reference.errors import CRMAError

KEYS = State._fields[:3]
SPEC_VERSIONS = ("0.1", "0.2", SPEC_VERSION)
SIZES = [(1, 1, 1, 1), (12, 2, 1, 3), (1100, 2, 1, 3), (1, 64, 1, 64), (2, 3, 17, 51), (1, 2, 3, 8192)]
WRITTEN = {"format", "spec_version", "config", "content_sha256"}


@st.composite
def states(draw):
    """Random states of random sizes. Every value differs from every other, so that no two can be exchanged unseen."""
    count, n, r, spare = (draw(st.integers(least, most)) for least, most in ((1, 4), (1, 4), (1, 3), (0, 3)))
    rng, d = np.random.default_rng(draw(SEEDS)), n * r + spare
    shapes = ((count, n, n), (count,), (count, n, r, d))
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return State(arrays[0], arrays[1], arrays[2], draw(st.integers(1, 40)))


def encoded(state, order=KEYS, **metadata):
    layers, n, r, d = state.bases.shape
    config = {"hidden_size": d, "streams": n, "rank": r, "iterations": state.iterations, "layers": layers}
    arrays = dict(zip(KEYS, state[:3], strict=True))
    return state_file(arrays, order, **{"config": json.dumps(config), "spec_version": SPEC_VERSION, **metadata})


def assert_holds(found, expected):
    """Bit for bit: nothing is computed."""
    assert found.iterations == expected.iterations
    for key, actual, wanted in zip(KEYS, found, expected, strict=False):
        assert np.shape(actual) == wanted.shape, f"STATE-1: {key}"
        assert np.asarray(actual, np.float32).tobytes() == wanted.tobytes(), f"STATE-1: {key}"


@pytest.mark.clause("STATE-1", "STATE-2")
@given(state=states())
def test_reads_what_a_state_file_holds(backend, state):
    assert_holds(backend.load_state(encoded(state)), state)


@pytest.mark.clause("STATE-5")
@pytest.mark.parametrize("order", list(itertools.permutations(KEYS)), ids=lambda order: "-".join(order))
@given(state=states())
def test_arrays_are_found_by_name_wherever_they_lie(backend, order, state):
    assert_holds(backend.load_state(encoded(state, order)), state)


@pytest.mark.clause("STATE-4", "STATE-6", "STATE-7", "STATE-8")
@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_are_wrong_in_one_thing_are_refused(backend, family):
    """All of a family, so that one check cannot stand for another."""
    taken = [name for name, data in FAMILIES[family]() if not fails(partial(backend.load_state, data))]
    assert not taken, f"STATE-4: accepted with {'; '.join(taken)}"


@pytest.mark.clause("STATE-2", "STATE-5", "STATE-6", "STATE-7")
def test_every_legal_form_is_read(backend):
    """With a checksum too, as this project writes all its files."""
    held = state_arrays()
    for name, data in legal_files():
        assert_holds(loaded(backend, data, name), state_of(held, CONFIG["iterations"]))
    for k in LARGE_K:
        config = json.dumps({**CONFIG, "iterations": k})
        assert_holds(loaded(backend, state_file(held, config=config), f"K = {k}"), state_of(held, k))
    large = large_arrays()
    assert_holds(loaded(backend, large_file(large), "300 layers"), state_of(large, CONFIG["iterations"]))


def state_of(arrays, iterations):
    logits, gates, bases = (arrays[key] for key in KEYS)
    return State(logits, gates, bases, iterations)


def loaded(backend, data, name):
    try:
        return backend.load_state(data)
    except CRMAError as error:
        raise AssertionError(f"STATE-2: refused, {name}: {error}") from error


def special_state(sizes, k):
    """With zeros of both signs, subnormal, the smallest and the largest numbers; no layer is like another."""
    layers, n, r, d = sizes
    special = np.asarray([0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 3e4], np.float32)
    arrays = [np.resize(special, shape) for shape in ((layers, n, n), (layers,), (layers, n, r, d))]
    for array in arrays:
        array.reshape(layers, -1)[:, -1] = np.arange(layers)
    return State(arrays[0], arrays[1], arrays[2], k)


@pytest.mark.clause("STATE-1")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size_is_read(backend, sizes):
    """(L, n, r, d), bit for bit."""
    state = special_state(sizes, 20)
    assert_holds(backend.load_state(encoded(state)), state)


@pytest.mark.clause("STATE-1", "BACK-9")
@pytest.mark.parametrize("key", KEYS)
def test_large_files_that_differ_in_one_number_are_two(backend, key):
    """In its first, in its middle or in its last number; of equal length, and without a checksum."""
    arrays = large_arrays()
    for place in (0, arrays[key].size // 2, -1, 0):
        changed = {name: array.copy() for name, array in arrays.items()}
        changed[key].reshape(-1)[place] += 1
        found = backend.load_state(large_file(changed, author="somebody"))
        assert_holds(found, state_of(changed, CONFIG["iterations"]))


@pytest.mark.clause("BACK-7", "BACK-8")
def test_the_bytes_of_a_file_belong_to_the_caller(backend):
    """They are not kept, and no array of the state is a view of them."""
    data = bytearray(state_file(state_arrays()))
    first = bytes(data)
    references = sys.getrefcount(first)
    found = backend.load_state(first)
    gc.collect()
    assert sys.getrefcount(first) == references, "BACK-7: load_state keeps the bytes"
    for key, array in zip(KEYS, found, strict=False):
        assert not np.shares_memory(np.asarray(array), np.frombuffer(first, np.uint8)), f"BACK-8: {key}"


@pytest.mark.clause("STATE-4")
@given(state=states(), seed=SEEDS)
def test_a_file_that_is_cut_off_anywhere_is_refused(backend, state, seed):
    data = encoded(state)
    length = int(np.random.default_rng(seed).integers(len(data)))
    assert fails(lambda: backend.load_state(data[:length])), f"STATE-4: accepted {length} of {len(data)} bytes"


@pytest.mark.clause("STATE-1", "STATE-2", "STATE-5")
@given(state=states())
def test_writes_a_state_file_that_others_can_read(backend, state):
    data = saved(backend, state)
    assert_holds(written(data), state)
    assert saved(backend, state) == data
    assert_holds(backend.load_state(data), state)


def saved(backend, state):
    require(backend, "save_state")
    return backend.save_state(*(array.astype(backend.parameter_dtype) for array in state[:3]), state.iterations)


def written(data):
    """The state of a file that a port wrote, with nothing in its metadata that save_state was not given."""
    content, metadata = decode_state(data), taken_apart(data)[0]["__metadata__"]
    assert metadata["spec_version"] in SPEC_VERSIONS, f"STATE-2: spec_version {metadata['spec_version']}"
    assert set(metadata) <= WRITTEN, f"STATE-2: metadata {sorted(set(metadata) - WRITTEN)}, which nobody gave"
    return State(*content[:3], content.config.iterations)


@pytest.mark.clause("STATE-1", "STATE-8")
@pytest.mark.parametrize(
    ("sizes", "k"), [*((sizes, 20) for sizes in SIZES), *((SIZES[0], k) for k in LARGE_K)], ids=str
)
def test_writes_every_size_bit_for_bit(backend, sizes, k):
    state = special_state(sizes, k)
    assert_holds(written(saved(backend, state)), state)


@pytest.mark.clause("STATE-1", "STATE-4", "STATE-8")
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_no_file_may_hold_is_not_written(backend):
    """Numbers that are not finite in float32, K that is no integer >= 1, shapes that disagree, n r > d, no layers."""
    require(backend, "save_state")
    dtype = backend.parameter_dtype
    right = {key: array.astype(dtype) for key, array in state_arrays().items()}
    wrong: dict[str, dict[str, Any]] = {f"K = {k!r}": {"iterations": k} for k in (0, -1, True, 2.0, 2.5, "3", None)}
    for key, bad in itertools.product(KEYS, (np.nan, np.inf, -np.inf)):
        for place in (0, -1):
            changed = right[key].copy()
            changed.reshape(-1)[place] = bad
            wrong[f"{bad} in {key} at {place}"] = {key: changed}
    for key in KEYS:
        for axis, step in itertools.product(range(right[key].ndim), (-1, 1)):
            shape = [size + step * (i == axis) for i, size in enumerate(right[key].shape)]
            wrong[f"{key} {shape}"] = {key: np.resize(right[key], shape)}
        wrong[f"{key} of another number of axes"] = {key: right[key][None]}
    wrong["n r > d"] = {"bases": np.ones((2, 3, 3, 7), dtype)}
    wrong["no layers"] = {key: right[key][:0] for key in KEYS}
    # a rank of 1 or 3 and another hidden size are not wrong in themselves: no other array says them
    fits = {f"bases {shape}" for shape in ([2, 3, 1, 7], [2, 3, 2, 6], [2, 3, 2, 8])}
    taken = [
        name
        for name, changed in wrong.items()
        if name not in fits and not fails(partial(backend.save_state, *{**right, "iterations": 9, **changed}.values()))
    ]
    assert not taken, f"STATE-4: written with {'; '.join(taken)}"


@pytest.mark.clause("STATE-1", "BACK-3")
@given(state=states())
def test_writes_strided_arrays_by_index(backend, state):
    """Arrays that lie in column-major order hold the same numbers."""
    logits, gates, bases = map(np.asfortranarray, state[:3])
    assert_holds(written(saved(backend, State(logits, gates, bases, state.iterations))), state)
