"""How many bytes the kernels load and store in Triton's interpreter, address by address, against formulas.

Device memory sees each byte of an operand once: a program that passes over x twice finds it in the L2 cache the second
time (``blocks_for``), and so does one that reads its own scratch again. What is left is ``again``.
"""

import importlib
from typing import NamedTuple

import numpy as np
import pytest
import torch

ITEM = 4  # bytes of a parameter and of a stream

TOKENS, D, STREAMS, RANK = 50, 37, 3, 2
WIDTH = STREAMS * RANK
BLOCK = 16


class Traffic(NamedTuple):
    """Bytes: read from and written to device memory at least, and read again from a cache."""

    read: int
    written: int
    again: int = 0


@pytest.fixture
def launches(kernels, monkeypatch):
    if not kernels.INTERPRETED:
        pytest.skip("addresses are counted in the interpreter")
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    found: list[dict[str, list[np.ndarray]]] = []

    def record(kind, function):
        def wrapper(pointers, *arguments, **keywords):
            mask = arguments[0] if kind == "loads" else arguments[1]
            addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            found[-1][kind].append(np.stack([addresses, np.full_like(addresses, size)]))
            return function(pointers, *arguments, **keywords)

        return wrapper

    def start(*dims):
        found.append({"loads": [], "stores": []})
        return set_grid_dim(*dims)

    set_grid_dim = builder.set_grid_dim
    monkeypatch.setattr(builder, "set_grid_dim", start)
    monkeypatch.setattr(builder, "create_masked_load", record("loads", builder.create_masked_load))
    monkeypatch.setattr(builder, "create_masked_store", record("stores", builder.create_masked_store))
    return found


def counted(launch):
    """Bytes loaded at least once, stored, and loaded again. Nothing may be stored twice."""
    loads, stores = (np.concatenate(launch[kind], axis=1) for kind in ("loads", "stores"))
    assert len(np.unique(stores[0])) == stores.shape[1], "an address was stored twice"
    own = np.isin(loads[0], stores[0])  # scratch: the program finds what it wrote in a cache
    unique = np.unique(loads[:, ~own], axis=1)
    return Traffic(int(unique[1].sum()), int(stores[1].sum()), int(loads[1].sum() - unique[1].sum()))


@pytest.mark.parametrize(("batch", "n", "iterations"), [(9, 3, 4), (2, 8, 1), (5, 1, 3)])
def test_projection(kernels, launches, module, monkeypatch, batch, n, iterations):
    """S read, M written; S and M' read, S' written, and 2K - 2 padded softmaxes by their own program."""
    monkeypatch.setattr(module("sinkhorn_projection"), "ENTRIES", 32)
    logits = torch.randn(batch, n, n, requires_grad=True)
    kernels.sinkhorn_projection(logits, iterations).sum().backward()
    padded = 1 << (n - 1).bit_length()
    block = min(1 << (batch - 1).bit_length(), max(1, 32 // padded**2))
    size = ITEM * batch * n * n
    scratch = ITEM * 2 * (iterations - 1) * -(-batch // block) * block * padded**2
    assert list(map(counted, launches)) == [Traffic(size, size), Traffic(2 * size, size + scratch, scratch)]


def over_tokens(tokens, d, width, rows, chunks, splits, item):
    """The launches over tokens, by their programs: over ``rows`` of them, or over ``chunks`` of places and parts."""
    x, parameters, streams = item * tokens * d, ITEM * width * d, ITEM * tokens * width
    forward = Traffic(x + 2 * parameters, x + streams, x + (rows - 1) * 2 * parameters)  # y; A and C per program
    read_back = Traffic(x + parameters, streams, (rows - 1) * parameters)  # w = A y'
    # x and y' read, x' written; z and w once per chunk of places, E per part of the tokens, P and Q
    again = (chunks - 1) * 2 * streams + (splits - 1) * parameters
    gradients = Traffic(2 * x + parameters + 2 * streams, x + 2 * splits * parameters, again)
    return forward, read_back, gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_mixing(kernels, launches, module, monkeypatch, dtype):
    """Forwards x is read once and y written once, beside parameters and streams; backwards four such arrays and one."""
    launch = module("launch")
    splits, steps = launch._splits(TOKENS, BLOCK, 2)
    monkeypatch.setattr(module("residual_mixing"), "blocks_for", lambda *_: launch.Blocks(*[BLOCK] * 4, splits, steps))
    x = torch.randn(TOKENS, D, dtype=dtype, requires_grad=True)
    mixing, strength = torch.eye(STREAMS).roll(1, 0).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    basis = torch.randn(STREAMS, RANK, D, requires_grad=True)
    kernels.residual_mixing(x, mixing, strength, basis).sum().backward()
    rows, chunks = -(-TOKENS // BLOCK), -(-D // BLOCK)
    forward, read_back, gradients = over_tokens(TOKENS, D, WIDTH, rows, chunks, splits, dtype.itemsize)
    parameters, small = ITEM * WIDTH * D, ITEM * (STREAMS**2 + 1)  # of A's size, and M with alpha
    mix_basis = Traffic(parameters + small, parameters)
    # P, Q, A, M and alpha read; A' and the products of A and P written, those padded to 16
    mix_gradients = Traffic((2 * splits + 1) * parameters + small, parameters + ITEM * 16**2)
    expected = [mix_basis, forward, read_back, mix_basis, gradients, mix_gradients]
    assert list(map(counted, launches)) == expected


def test_at_the_size_of_a_model_the_rest_is_small():
    """8192 tokens of 4096 in bfloat16, four streams of four: one read and one write of x, and 1% beside them."""
    tokens, d, item = 8192, 4096, 2
    x = item * tokens * d
    forward, read_back, gradients = over_tokens(tokens, d, 16, tokens // 64, d // 64, 4, item)
    assert 2 * x <= forward.read + forward.written <= 1.01 * 2 * x
    assert 4 * x <= sum(part.read + part.written for part in (read_back, gradients)) <= 1.05 * 4 * x


@pytest.mark.parametrize(
    ("tokens", "processors", "rows"),
    [(128, 132, 16), (2048, 132, 16), (4096, 132, 32), (8192, 132, 64), (8192, 108, 64), (16384, 132, 64)],
)
def test_a_tile_keeps_the_multiprocessors_busy(module, tokens, processors, rows):
    """128 programs for 132 multiprocessors stay as they are: half the rows would read A and C twice as often."""
    assert module("launch").rows_for(tokens, 4096, 2, 16, processors, 50 * 2**20) == rows


def test_a_tile_fits_the_cache_and_shared_memory(module):
    launch = module("launch")
    assert launch.rows_for(2**20, 4096, 2, 16, 132, 20 * 2**20) == 16  # 132 tiles of 32 rows of 8 KB would be 33 MB
    assert launch.rows_for(2**20, 4096, 2, 128, 132, 50 * 2**20) == 16  # eight times as wide a basis
    assert launch.rows_for(2**20, 4096, 2, 16, 132, 2**10) == launch.SHORTEST  # no cache to speak of
