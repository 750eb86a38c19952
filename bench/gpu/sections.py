"""The sections of ``python -m bench.gpu`` in their order: what is cheap or decides most first, the long ones last."""

from typing import NamedTuple


class Section(NamedTuple):
    """The module and the function in it that does the work, called with its arguments and a Report; ``seconds`` that it
    may take at most on a GPU.
    """

    module: str
    function: str
    seconds: int
    arguments: tuple[str, ...] = ()


#: says which machine it is, and so runs at every start
FIRST = "machine"
SECTIONS = {
    FIRST: Section("bench.gpu.machine", "machine", 60),
    "triton-compiled": Section("bench.gpu.compiled", "triton_kernels", 120),
    "pallas-compiled": Section("bench.gpu.compiled", "pallas_kernels", 90),
    "agreement": Section("bench.gpu.agreement", "agreement", 90),
    "large-tensors": Section("bench.gpu.large", "large_tensors", 60),
    "determinism": Section("bench.gpu.agreement", "determinism", 60),
    "conformance-torch-cuda": Section("bench.gpu.suite", "conformance", 180, ("torch-cuda",)),
    "conformance-jax-cuda": Section("bench.gpu.suite", "conformance", 180, ("jax-cuda",)),
    "conformance-torch-plain": Section("bench.gpu.suite", "conformance", 90, ("torch-plain",)),
    "launches": Section("bench.gpu.launches", "launches", 60),
    "cuda-graph": Section("bench.gpu.launches", "cuda_graph", 45),
    "torch-compile": Section("bench.gpu.launches", "torch_compile", 120),
    "copy-bandwidth": Section("bench.gpu.speed", "bandwidth", 45),
    "projections": Section("bench.gpu.speed", "projections", 90),
    "model-1.1b": Section("bench.gpu.models", "model", 90, ("tinyllama-1.1b",)),
    "model-3.8b": Section("bench.gpu.models", "model", 90, ("phi-4-mini",)),
    "model-7.2b": Section("bench.gpu.models", "model", 120, ("mistral-7b-v0.3",)),
    "model-9.2b": Section("bench.gpu.models", "model", 150, ("gemma-2-9b",)),
    "fine-tuning": Section("bench.gpu.finetuning", "finetuning", 150),
    "conformance-torch-triton": Section("bench.gpu.suite", "conformance", 180, ("torch-triton",)),
    "conformance-jax-pallas": Section("bench.gpu.suite", "conformance", 240, ("jax-pallas",)),
}
