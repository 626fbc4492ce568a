"""Embedding: rows of a table by token, and the sums of output gradients by token as the gradient of the table.

    y_n = weight_[token_n],   dweight_v = sum over n with token_n = v of dy_n

PyTorch's backward sorts 64-bit tokens, eight passes over keys and positions; two suffice for a vocabulary of up to
2^15. The sums are taken in the order of the positions, in float32 (float64 for float64): equal inputs give equal bits.
"""

import torch.nn.functional as F
from torch import Tensor

from .costs import total_bytes


def reference(tokens_x: Tensor, weight_VD: Tensor) -> Tensor:
    """`embedding` in PyTorch: differentiable, any device."""
    return F.embedding(tokens_x, weight_VD)


def embedding(tokens_x: Tensor, weight_VD: Tensor) -> Tensor:
    """tokens (...) int64 in [0, V), weight (V,D) -> (..., D)."""
    if weight_VD.is_cuda and weight_VD.element_size() <= 4:
        from .embedding_triton import embedding as by_triton

        return by_triton(tokens_x, weight_VD)
    return reference(tokens_x, weight_VD)


def flops(*, tokens: int, width: int, backward: bool = False) -> int:
    """None forward; an addition per element backward."""
    return tokens * width if backward else 0


def bytes_moved(*, tokens: int, width: int, vocabulary: int, element_bytes: int = 4, backward: bool = False) -> int:
    """Tokens (8 bytes each) and a row of the table for each in, y out; backward: tokens and dy in, the gradient out."""
    forward = 8 * tokens + total_bytes(tokens * width, tokens * width, element_bytes=element_bytes, backward=False)
    return forward + 8 * tokens + (tokens + vocabulary) * width * element_bytes if backward else forward
