"""What all kernels share: whether they are interpreted, and the sizes of their blocks."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from reference.errors import DeviceUnavailableError

#: Triton's interpreter (TRITON_INTERPRET=1 when the kernels were imported) in place of a GPU: NumPy on the CPU.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

#: tl.dot takes no side shorter than this.
SHORTEST = 16


class Blocks(NamedTuple):
    """Tokens that a program takes at a time, in whole rows and for the gradients of parameters, and places of x; padded
    n r; and in how many parts the gradients of parameters are summed over tokens, each of ``steps`` tiles.
    """

    rows: int
    tile: int
    places: int
    width: int
    splits: int
    steps: int


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is not less than ``size`` and ``least``."""
    return 1 << (max(size, least, 1) - 1).bit_length()


@contextmanager
def device_of(**tensors: Tensor) -> Iterator[None]:
    """Launch on the device of the tensors, rather than on the current one, which is Triton's choice.

    Raises: DeviceUnavailableError for tensors that are not on one GPU, unless the kernels are interpreted.
    """
    first = next(iter(tensors.values())).device
    for field, tensor in tensors.items():
        if not (INTERPRETED or tensor.is_cuda) or tensor.device != first:
            raise DeviceUnavailableError(
                field,
                got=f"a tensor on {tensor.device}",
                allowed=f"a tensor on {first if first.type == 'cuda' else 'a CUDA device, as kernels need it'}",
                remedy="move it to the GPU, set TRITON_INTERPRET=1 before the start, or ask for kernels='torch'",
            )
    with torch.cuda.device(first) if first.type == "cuda" else nullcontext():
        yield


def blocks_for(x: Tensor, width: int) -> Blocks:
    """Blocks for x (tokens, d) and ``width`` = n r. They depend on sizes and on the device alone, never on timings:
    the same call sums in the same order.

    A program of either kernel takes less than 99 KiB of shared memory, which every GPU since 2020 has.
    """
    tokens, d = x.shape
    padded = power_of_two(width, SHORTEST)
    if INTERPRETED:
        block = min(256, power_of_two(tokens, SHORTEST))
        places, most_splits = min(128, power_of_two(d, SHORTEST)), 4
        return Blocks(block, block, places, padded, *_splits(tokens, block, most_splits))
    device = torch.cuda.get_device_properties(x.device)
    processors = device.multi_processor_count
    block = rows_for(tokens, d, x.element_size(), padded, processors, device.L2_cache_size)
    places = min(places_for(padded), power_of_two(d, SHORTEST))
    tile = min(block, 32)
    most_splits = max(1, 2 * processors // triton.cdiv(d, places))
    return Blocks(block, tile, places, padded, *_splits(tokens, tile, most_splits))


def rows_for(tokens: int, d: int, itemsize: int, padded: int, processors: int, cache: int) -> int:
    """Whole rows of x for a program: what the busiest multiprocessor moves is least, and of equals the most rows.

    It takes ``cdiv(programs, processors)`` programs, each of which reads and writes its rows, and reads the basis and
    the mixed basis (float32). So 8,192 tokens on 132 multiprocessors are 128 programs of 64 rows. Four
    multiprocessors are idle, but 256 programs of 32 rows would end no sooner and read the basis twice as often.
    A tile is no larger than the L2 cache allows when every multiprocessor holds one (half of a tile is alive on
    average), so that the second pass over x finds it there.
    """
    basis_in_rows = padded * 4 / itemsize
    block = most_rows(padded)
    choices = [block]
    while (block := block // 2) >= SHORTEST:
        choices.append(block)
    fitting = [rows for rows in choices if processors * rows * d * itemsize <= 1.5 * cache] or choices[-1:]

    def moved(rows: int) -> float:
        return triton.cdiv(triton.cdiv(tokens, rows), processors) * (rows + basis_in_rows)

    return min(fitting, key=moved)  # the first of equals


def most_rows(padded: int) -> int:
    """Rows of x for a program at most, by the padded n r: shared memory does not suffice for more."""
    return 64 if padded <= 64 else 16


def places_for(padded: int) -> int:
    """Places of x for a program, by the padded n r. With more, shared memory does not suffice (test_compilation)."""
    return 64 if padded == SHORTEST else 32 if padded <= 128 else 16


def _splits(tokens: int, tile: int, most: int) -> tuple[int, int]:
    """Parts and steps. Steps are a power of two, since each number of them is compiled anew."""
    tiles = triton.cdiv(tokens, tile)
    steps = power_of_two(triton.cdiv(tiles, most))
    return triton.cdiv(tiles, steps), steps
