"""Memory of one device, by part."""

from backends.finetune.methods.method import Condition
from backends.finetune.plan.counts import Counts
from backends.finetune.protocols.protocol import Protocol

FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight in NF4 with scales of 64 in 8 bits, these in blocks of 256
PER_TRAINABLE = {"trainables": 4, "gradients": 4, "optimizer": 8}  # bytes; all float32, AdamW's two averages
CUDA_CONTEXT = 600 * 2**20  # of the driver and cuBLAS; roughly

Parts = dict[str, float]


def weight_bytes(counts: Counts, protocol: Protocol, *, full: bool, shard: bool) -> float:
    """The frozen weights; with ``full`` they are counted among the trainables."""
    if full:
        return 0.0
    each = 2 if protocol.precision == "bfloat16" else 4
    if protocol.quantization == "4bit":
        return counts.linear * FOUR_BITS + (counts.base - counts.linear) * each
    if is_rounded(protocol, full=full, shard=shard):
        return float(4 * counts.base - 2 * (counts.linear + counts.head))
    return float(counts.base * each)


def is_rounded(protocol: Protocol, *, full: bool, shard: bool) -> bool:
    """Whether frozen linear layers are in bfloat16 once they have been loaded in float32."""
    return protocol.precision == "mixed" and protocol.quantization != "4bit" and not (full or shard)


def logit_bytes(vocabulary: int, answers: int) -> float:
    """The most that the logits of a training step take at once, beside what the model's own graph keeps of them.

    Only answer tokens have any. In the backward pass of the loss there are, in float32, they themselves, their
    logarithms, and the gradients of both.
    """
    return 16.0 * answers * vocabulary


def scored_bytes(vocabulary: int, answers: int, protocol: Protocol) -> float:
    """The same of an evaluation, which has no gradients: in the precision of the products and in float32, or in float32
    and their logarithms."""
    return (8.0 if protocol.precision == "float32" else 10.0) * answers * vocabulary


def trainable_bytes(trainable: dict[str, int]) -> Parts:
    """Parameters, gradients and averages of what is trained."""
    values = sum(trainable.values())
    return {part: float(size * values) for part, size in PER_TRAINABLE.items()}


def method_bytes(condition: Condition, trainable: dict[str, int], phases: int, answered: float) -> float:
    """What a method holds in the last phase; ``answered``: bytes of float32 logits of a batch's answers."""
    return condition.method.held_bytes(4.0 * trainable.get("lora", 0), phases, answered) if phases > 1 else 0.0


def disk_bytes(condition: Condition, trainable: dict[str, int], phases: int) -> float:
    """What one seed of a condition takes in the run folder at most: the files of its phases, and the checkpoint of the
    phase under way (parameters and two averages) beside its successor while that is written.
    """
    kept = phases * (trainable.get("lora", 0) + trainable.get("crma", 0))
    if condition.trains == "full":
        kept = 2 * trainable["full"]  # the models of the last two phases
    kept += 2 * condition.method.kept_values(trainable.get("lora", 0))  # its files of the last two phases
    return 4.0 * (kept + 2 * 3 * sum(trainable.values()))
