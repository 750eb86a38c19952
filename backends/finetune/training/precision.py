"""Products in bfloat16 only where the processor has instructions for them."""

from collections.abc import Sequence

from backends.finetune.protocols.protocol import Protocol

_NONE_HERE = "This processor has no instructions for bfloat16"


def on_this_processor(protocol: Protocol, backend: str, settings: Sequence[str]) -> tuple[Protocol, str]:
    """The protocol with a precision that this processor is made for, and what is to be said of it ("": nothing).

    In PyTorch on a CPU without instructions for bfloat16 a step of SmolLM2-135M in ``mixed`` took 98 s where one in
    float32 took 5.4 s (an AMD EPYC with AVX2, one thread). So ``mixed`` becomes ``float32``, which is no less exact,
    before a run folder takes note of its precision; JAX is left as it is, where ``mixed`` took 6.3 s for 4.5 s.

    ``settings``: FIELD=VALUE, as the user gave them or a folder has them; a precision among them stays.

    Source: ours.
    """
    if backend != "torch-cpu" or protocol.precision == "float32" or multiplies_bfloat16():
        return protocol, ""
    is_chosen = any(setting.partition("=")[0].strip() == "precision" for setting in settings)
    if protocol.precision == "mixed" and not is_chosen:
        said = f"{_NONE_HERE}, so precision=float32 in place of mixed."
        return protocol.model_copy(update={"precision": "float32"}), said
    return protocol, f"{_NONE_HERE}: precision={protocol.precision} may take ten times as long as float32."


def multiplies_bfloat16() -> bool:
    """Whether PyTorch's products in bfloat16 on this CPU are by oneDNN's instructions, not by a plain loop."""
    import torch

    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
