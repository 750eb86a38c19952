"""The router on hand-made embeddings, where every figure is known."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("safetensors")
import safetensors.numpy

from backends.finetune.inference.router import CentroidRouter
from backends.finetune.inference.router_evaluation import evaluate, leave_out
from backends.finetune.inference.router_file import read_router
from reference.errors import ConfigError, StateFileError, TaskDataError


class Angles:
    """A text is an angle in degrees, and its length: "30", "30*2"; "" is the zero vector."""

    name = "angles"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = []
        for text in texts:
            angle, _, length = text.partition("*")
            radius = float(length or 1) if text else 0.0
            radians = math.radians(float(angle or 0))
            rows.append([radius * math.cos(radians), radius * math.sin(radians)])
        return np.array(rows, np.float32)


QUERIES = {"east": ["-10", "10*5", "-4", "4"], "north": ["80", "100", "90*3", "90"], "west": ["170", "190"]}


def test_centroids_are_mean_directions_whatever_the_lengths() -> None:
    router = CentroidRouter.fit(QUERIES, Angles())
    expected = [[1, 0], [0, 1], [-1, 0]]
    np.testing.assert_allclose(router.centroids, expected, atol=1e-6)
    route = router.route("30*7")
    assert route.scores == pytest.approx({"east": math.cos(math.pi / 6), "north": 0.5, "west": -math.cos(math.pi / 6)})
    assert route.margin == pytest.approx(math.cos(math.pi / 6) - 0.5)
    routes = router.route_all(["3", "91", "-1", "179"])
    assert [found.task for found in routes] == ["east", "north", "east", "west"]
    assert router.route_all([]) == []


def test_the_threshold_leaves_each_query_out_of_its_own_centroid() -> None:
    """At 0: the worst query. West's two are 20 degrees apart, and each has only the other one for a centroid."""
    router = CentroidRouter.fit(QUERIES, Angles(), reject=0.0)
    assert router.threshold == pytest.approx(math.cos(math.radians(20)), abs=1e-6)
    assert router.route("19.9").task == "east"
    assert router.route("20.1").task is None
    assert router.route("90*100").task == "north"


def test_the_quantile_turns_away_that_fraction() -> None:
    rng = np.random.default_rng(3)
    queries = {"one": [str(a) for a in rng.normal(0, 15, 400)], "two": [str(a) for a in rng.normal(120, 15, 400)]}
    fresh = [str(a) for a in rng.normal(0, 15, 4000)]
    rejected = {}
    for reject in (0.0, 0.05, 0.25):
        router = CentroidRouter.fit(queries, Angles(), reject=reject)
        rejected[reject] = np.mean([route.task is None for route in router.route_all(fresh)])
    assert rejected[0.0] < 0.01
    assert rejected[0.05] == pytest.approx(0.05, abs=0.02)
    assert rejected[0.25] == pytest.approx(0.25, abs=0.04)


def test_a_text_without_words_is_out_of_domain() -> None:
    router = CentroidRouter.fit({"east": ["-89", "89"], "any": ["-80", "260"]}, Angles(), reject=0.0)
    assert router.threshold < 0
    route = router.route("")
    assert route.task is None
    assert route.scores == {"east": 0.0, "any": 0.0}


def test_save_and_load(tmp_path: Path) -> None:
    router = CentroidRouter.fit(QUERIES, Angles(), reject=0.05)
    router.save(tmp_path / "router.safetensors")
    router.save(tmp_path / "again.safetensors")
    assert (tmp_path / "router.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    loaded = CentroidRouter.load(tmp_path / "router.safetensors", Angles())
    assert np.array_equal(loaded.centroids, router.centroids)
    assert (loaded.tasks, loaded.threshold, loaded.reject) == (router.tasks, router.threshold, 0.05)
    for query in ("17", "45", "188", "270"):
        assert loaded.route(query) == router.route(query)
    assert read_router(tmp_path / "router.safetensors").embedding == "angles"


def test_another_embedding_is_refused(tmp_path: Path) -> None:
    class Others(Angles):
        name = "others"

    class Longer(Angles):
        def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.pad(super().__call__(texts), ((0, 0), (0, 1)))

    CentroidRouter.fit(QUERIES, Angles()).save(tmp_path / "router.safetensors")
    with pytest.raises(StateFileError, match=r"angles.*allowed: others"):
        CentroidRouter.load(tmp_path / "router.safetensors", Others())
    with pytest.raises(StateFileError, match="2 dimensions"):
        CentroidRouter.load(tmp_path / "router.safetensors", Longer()).route("3")


@pytest.mark.parametrize("content", [None, b"", safetensors.numpy.save({"centroids": np.zeros((2, 2), np.float32)})])
def test_a_file_that_is_no_router_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Damage to one that was: backends/finetune/runs/tests/test_damage.py."""
    file = tmp_path / "router.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StateFileError, match=r"router\.safetensors"):
        CentroidRouter.load(file, Angles())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="reject"):
        CentroidRouter.fit(QUERIES, Angles(), reject=1.0)
    with pytest.raises(TaskDataError, match="two at least"):
        CentroidRouter.fit({"one": ["1"]}, Angles())
    with pytest.raises(TaskDataError, match="one at least"):
        CentroidRouter.fit({}, Angles())
    with pytest.raises(TaskDataError, match="zero"):
        CentroidRouter.fit({"one": ["1", ""]}, Angles())
    with pytest.raises(TaskDataError, match="zero"):
        CentroidRouter.fit({"one": ["0", "180"]}, Angles())


def test_evaluation_counts_every_query_once() -> None:
    router = CentroidRouter.fit(QUERIES, Angles(), reject=0.0)
    asked = {"east": ["0", "5", "89"], "north": ["90", "95", "180", "225"], "west": ["180"]}
    found = evaluate(router, asked)
    assert found.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 1, 1], [0, 0, 1, 0]]
    assert found.accuracy == pytest.approx(5 / 8)
    assert found.nearest_accuracy == pytest.approx(5 / 8)
    assert found.margins[0] == pytest.approx(-math.sqrt(2))  # 225 asked as north
    assert found.margins[-1] == pytest.approx(1)


def test_a_task_left_out_of_the_fit() -> None:
    asked = {"east": ["0", "5", "60"], "north": ["90", "95"], "west": ["180", "98"]}
    found = {left.task: left for left in leave_out(QUERIES, asked, Angles(), reject=0.0)}
    assert found["west"].detected == pytest.approx(1 / 2)  # 98 is near north, which is still there
    assert found["west"].rejected_in_domain == pytest.approx(1 / 5)  # 60
    assert found["north"].detected == pytest.approx(1)
