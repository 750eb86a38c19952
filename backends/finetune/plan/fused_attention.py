"""An attention for traces that keeps what a fused kernel keeps: queries, keys, values, output, one number per row.

Its backward pass computes the scores again, as such kernels do (T. Dao et al. 2022, arXiv:2205.14135): 5 products of
matrices after the 2 of the forward pass. It is never computed with.
"""

from typing import Any

FUSED = "planned_fused"


def register_fused_attention() -> None:
    """Make it known to transformers under the name ``FUSED``."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            output = (query @ key.transpose(-1, -2)) @ value
            rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, output, rows)
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            query, key, value, _, _ = ctx.saved_tensors
            scores = query @ key.transpose(-1, -2)
            of_scores = gradient @ value.transpose(-1, -2)
            return of_scores @ key, of_scores.transpose(-1, -2) @ query, scores.transpose(-1, -2) @ gradient

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any) -> tuple[Any, None]:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
        groups = query.shape[1] // key.shape[1]
        if groups > 1:  # with a mask, transformers repeats keys and values before the kernel
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return Fused.apply(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(FUSED, attend)
    AttentionMaskInterface.register(FUSED, lambda *args, **settings: None)
