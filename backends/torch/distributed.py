"""Adapters on many devices: FSDP2 shards them with their precision, and state files are written from the whole.

DDP needs nothing. FSDP2 shards what ``fully_shard`` is called on; called on a decoder block with a mixed-precision
policy it would cast the adapter's parameters to bfloat16 with the rest (MIX-10), so the adapters are sharded first,
each as a group of its own that computes in float32.
"""

from typing import Any

from backends.torch.backbone import CRMABackbone


def shard_adapters(backbone: CRMABackbone, **options: Any) -> None:
    """``fully_shard`` each adapter in float32. Call it after ``attach_crma`` and before sharding the blocks.

    Args:
        options: of ``torch.distributed.fsdp.fully_shard``, such as ``mesh``; not ``mp_policy``.

    Clause: MIX-10. Source: structural parameters in float32, paper section 5.1; the form, ours.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for adapter in backbone.adapters:
        fully_shard(adapter, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), **options)
