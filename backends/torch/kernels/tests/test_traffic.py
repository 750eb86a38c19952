"""The formulas of ``traffic`` against what the kernels load and store in Triton's interpreter, address by address."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from backends.torch.kernels import traffic

TOKENS, D, STREAMS, RANK = 50, 37, 3, 2
WIDTH = STREAMS * RANK
BLOCK = 16


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
    return traffic.Traffic(int(unique[1].sum()), int(stores[1].sum()), int(loads[1].sum() - unique[1].sum()))


@pytest.mark.parametrize(("batch", "n", "iterations"), [(9, 3, 4), (2, 8, 1), (5, 1, 3)])
def test_projection(kernels, launches, monkeypatch, batch, n, iterations):
    monkeypatch.setattr(importlib.import_module("backends.torch.kernels.sinkhorn_projection"), "ENTRIES", 32)
    logits = torch.randn(batch, n, n, requires_grad=True)
    kernels.sinkhorn_projection(logits, iterations).sum().backward()
    padded = 1 << (n - 1).bit_length()
    block = min(1 << (batch - 1).bit_length(), max(1, 32 // padded**2))
    forward, backward = map(counted, launches)
    assert forward == traffic.projection_forward(batch, n)
    assert backward == traffic.projection_backward(batch, n, iterations, -(-batch // block), block, padded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_mixing(kernels, launches, monkeypatch, dtype):
    """Forwards x is read once and y written once, beside parameters and streams; backwards four such arrays and one."""
    launch = importlib.import_module("backends.torch.kernels.launch")
    module = importlib.import_module("backends.torch.kernels.residual_mixing")
    steps_and_parts = launch._splits(TOKENS, BLOCK, 2)
    monkeypatch.setattr(module, "blocks_for", lambda x, width: launch.Blocks(*[BLOCK] * 4, *steps_and_parts))
    x = torch.randn(TOKENS, D, dtype=dtype, requires_grad=True)
    mixing, strength = torch.eye(STREAMS).roll(1, 0).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    basis = torch.randn(STREAMS, RANK, D, requires_grad=True)
    kernels.residual_mixing(x, mixing, strength, basis).sum().backward()
    rows, chunks, splits, item = -(-TOKENS // BLOCK), -(-D // BLOCK), steps_and_parts[0], dtype.itemsize
    assert [counted(launch) for launch in launches] == [
        traffic.mix_basis(STREAMS, WIDTH, D, 1),
        traffic.mixing_forward(TOKENS, D, WIDTH, rows, item),
        traffic.mixing_read_back(TOKENS, D, WIDTH, rows, item),
        traffic.mix_basis(STREAMS, WIDTH, D, 1),
        traffic.mixing_gradients(TOKENS, D, WIDTH, chunks, splits, item),
        traffic.mix_gradients(STREAMS, WIDTH, D, splits, 1, 16),
    ]


def test_at_the_size_of_a_model_the_rest_is_small():
    """8192 tokens of 4096 in bfloat16, four streams of four: one read and one write of x, and 1% beside them."""
    tokens, d, width = 8192, 4096, 16
    x = tokens * d * 2
    forward = traffic.mixing_forward(tokens, d, width, tokens // 64, 2)
    assert 2 * x <= forward.read + forward.written <= 1.01 * 2 * x
    read_back = traffic.mixing_read_back(tokens, d, width, tokens // 64, 2)
    gradients = traffic.mixing_gradients(tokens, d, width, d // 64, 4, 2)
    backward = sum(part.read + part.written for part in (read_back, gradients))
    assert 4 * x <= backward <= 1.05 * 4 * x
