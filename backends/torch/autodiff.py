"""The forward formulas in plain torch operations, for autograd alone to differentiate: it checks the closed forms."""

import torch
from torch import Tensor

ROW, COLUMN = -1, -2


def plain_adapter(x: Tensor, mix_logits: Tensor, gate_logit: Tensor, basis: Tensor, iterations: int) -> Tensor:
    """y of :func:`reference.adapter_forward` without a single custom gradient. Slow. Clause: BACK-6."""
    log_matrix = mix_logits - mix_logits.amax()
    for _ in range(iterations - 1):
        log_matrix = log_matrix.log_softmax(ROW).log_softmax(COLUMN)
    plain = log_matrix.log_softmax(ROW).softmax(COLUMN)
    row_sums = plain.sum(ROW, keepdim=True)
    largest = row_sums.max(COLUMN, keepdim=True).values  # of equal row sums, the gradient goes to one
    mixing = plain / largest + (1 - row_sums / largest) / len(plain)
    flat = basis.flatten(0, 1)
    gram = flat @ flat.T
    scale = gram.trace()
    kappa = scale * (torch.linalg.matrix_power(gram / scale, 8).trace()) ** 0.125
    streams = torch.einsum("...d,nrd->...nr", x, basis)
    moved = torch.einsum("ij,...jr->...ir", mixing, streams) - streams
    return x + gate_logit.sigmoid() / kappa * torch.einsum("...nr,nrd->...d", moved, basis)
