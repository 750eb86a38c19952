"""Run by test_sharding.py in a process of its own: every mesh of eight host devices must give what one device gives."""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from backends.jax.decoder.generate import generate
from backends.jax.decoder.sharding import make_mesh
from backends.jax.decoder.tests._random_folders import FAMILIES, write_folder
from backends.jax.decoder.tests._sharded_run import Run, draw_trainables, tuning

MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))
STEPS = 3
TABLES, KEYS = ("embedding", "head"), ("self_attn.k_proj", "self_attn.v_proj")
#: (model, devices along the axis "model") -> matrices that every device has to hold whole
WHOLE = {
    ("llama", 2): {*TABLES, *KEYS},
    ("llama", 4): {*TABLES, *KEYS, "self_attn.q_proj"},
    ("llama", 8): {*TABLES, *KEYS, "self_attn.q_proj"},
    ("gemma2", 8): {*KEYS},
}

#: Sums over devices are taken in another order, each off by some 1e-7 of its largest term, and the backward pass
#: carries that through two layers. Worst seen, as a part of the largest entry of each array: 3.5e-6 in a gradient, and
#: 4e-7 in a loss. Zero would be off by 1.
GRADIENT, LOSS = 2e-5, 2e-6


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            check_family(name, write_folder(Path(folder, name), name))


def check_family(name: str, folder: Path) -> None:
    alone = Run(folder, None)
    weights = jax.tree.map(np.asarray, alone.params)
    first_loss, gradients = alone.train(1)
    losses = first_loss + alone.train(2 * STEPS - 1)[0]
    assert losses[0] - losses[-1] > 0.05 * losses[0], losses  # training does something
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))
    runs = {}
    for shape in MESHES:
        runs[shape] = run = Run(folder, make_mesh(*shape))
        check_placement(run, weights, shape[1])
        first, actual = run.train(1)
        worst = np.max(jax.tree.leaves(jax.tree.map(relative_difference, actual, gradients)))
        assert worst < GRADIENT, (name, shape, worst)
        farthest = check_losses(first + run.train(STEPS - 1)[0], losses[:STEPS])
        print(f"{name} {shape}: gradients differ by {worst:.1e}, losses by {farthest:.1e}")
    if name != "llama":  # whose o has the shape of its q, which is whole
        check_no_whole_matrix(runs[1, 8], 8)
    saved = runs[4, 2].save()
    runs[1, 8].load(*saved)
    assert runs[1, 8].save() == saved
    farthest = check_losses(runs[1, 8].train(STEPS)[0], losses[STEPS:])
    print(f"{name} saved on (4, 2), loaded on (1, 8): losses differ by {farthest:.1e}")
    if name == "gemma2":
        for run in runs.values():
            check_exchanges(run)
        check_generation(alone, runs[2, 4])


def check_placement(run: Run, weights: Any, model: int) -> None:
    """Each device has its share of every matrix but those of WHOLE, and the shares make up the weights."""
    for name, leaf in named_matrices(run.params).items():
        parts = 1 if name in WHOLE.get((run.config.model_type, model), ()) else model
        assert {shard.data.size * parts for shard in leaf.addressable_shards} == {leaf.size}, (name, model)
        assert len(leaf.addressable_shards) == 8
    jax.tree.map(np.testing.assert_array_equal, run.params, weights)
    for leaf in jax.tree.leaves((run.trained, run.state)):
        assert leaf.sharding.is_fully_replicated
    leaves = jax.tree.leaves((run.params, run.trained, run.state, run.batch))
    on_one_device = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    memory = run.step.memory_analysis()
    assert memory is not None
    assert memory.argument_size_in_bytes == on_one_device


def check_no_whole_matrix(run: Run, model: int) -> None:
    """Nor does an instruction of one device's program put a matrix that is split together again, or all its layers."""
    found = {tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", run.program)}
    split = set(named_matrices(run.params)) - WHOLE.get((run.config.model_type, model), set())
    assert len(split) >= 4
    for name in split:
        *_, outputs, inputs = named_matrices(run.params)[name].shape
        matrices = {(outputs, inputs), (inputs, outputs), (1, outputs, inputs), (run.config.layers, outputs, inputs)}
        assert not matrices & found, name


def named_matrices(params: Any) -> dict[str, jax.Array]:
    """embedding, head, and the stacked projections by their paths."""
    stacked = {name.removesuffix(".weight"): leaf for name, leaf in params["layers"].items() if leaf.ndim == 3}
    return stacked | {name: leaf for name, leaf in params.items() if name in TABLES}


def check_exchanges(run: Run) -> None:
    """Where neither heads nor matrices are cut apart, devices exchange sums within a layer, and nothing else."""
    within = [line for line in run.program.splitlines() if "while/body" in line]
    kinds = {kind for line in within for kind in re.findall(r" ([a-z-]+)\(", line)[:1]}
    kinds &= {"all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"}
    assert kinds == {"all-reduce"}, (run.mesh, kinds)


def check_generation(alone: Run, run: Run) -> None:
    """Tokens, cache included; the weights lie on the mesh, everything else comes from the host."""
    ids = np.asarray(alone.batch[0])[:2]
    tuned = tuning(draw_trainables(run.config))
    tokens, expected = (
        generate(params, run.config, ids, max_new_tokens=8, eos_token_ids=(), **tuned)
        for params in (run.params, alone.params)
    )
    np.testing.assert_array_equal(tokens, expected)
    assert len(np.unique(expected[:, ids.shape[1] :])) > 3


def check_losses(actual: list[float], expected: list[float]) -> float:
    farthest = float(np.max(np.abs(np.divide(actual, expected) - 1)))
    assert farthest < LOSS, (actual, expected)
    return farthest


def relative_difference(actual: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


if __name__ == "__main__":
    main()
