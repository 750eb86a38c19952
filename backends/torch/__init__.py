"""CRMA for PyTorch.

>>> import torch
>>> from backends.torch import CRMAAdapter
>>> adapter = CRMAAdapter(hidden_size=64)
>>> adapter(torch.zeros(2, 10, 64)).shape
torch.Size([2, 10, 64])
"""

from backends.certificate import Certificate
from backends.torch.adapter import CRMAAdapter
from backends.torch.attach import attach_crma, attached_backbone
from backends.torch.backbone import CRMABackbone
from backends.torch.certificates import AdapterState
from backends.torch.data_displacement import StreamMoments
from backends.torch.distributed import shard_adapters
from backends.torch.sinkhorn_projection import sinkhorn_projection
from backends.torch.state import load_state, save_state

__all__ = [
    "AdapterState",
    "CRMAAdapter",
    "CRMABackbone",
    "Certificate",
    "StreamMoments",
    "attach_crma",
    "attached_backbone",
    "load_state",
    "save_state",
    "shard_adapters",
    "sinkhorn_projection",
]
