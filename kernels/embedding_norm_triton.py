"""`embedding_norm` by the kernels of `add_layer_norm` and `embedding`."""

# mypy: allow-untyped-defs

import torch
from torch import Tensor

from . import add_layer_norm_triton as norms
from . import embedding_triton as tables
from .block_boundary import Norm
from .draws import Draws
from .embedding import Places


class _EmbeddingNorm(torch.autograd.Function):
    """Keeps the stream, the statistics and what stays."""

    @staticmethod
    def forward(ctx, tokens, table, weight, bias, draws, places, keep, eps, center, dtype, stream):
        seed, steps = draws or (0, None)
        shape = (*tokens.shape, table.shape[1])
        y, r = table.new_empty(shape, dtype=dtype), table.new_empty(shape, dtype=stream)
        stats = table.new_empty((2, tokens.numel()), dtype=torch.float32)
        drawn = None if steps is None else table.new_empty(shape, dtype=torch.uint8)
        given = table.contiguous(), None, None, steps, tokens.contiguous(), weight, bias
        norms.launch_forward(*given, seed, keep, eps, center, y, r, stats, drawn)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(tokens, r, drawn, weight, bias, stats, *(places or ()))
        ctx.table, ctx.options = (len(table), table.dtype), (keep, False, center, table.dtype)
        return y, r

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dr):
        tokens, r, drawn, weight, bias, stats, *places = ctx.saved_tensors
        dy = torch.zeros_like(r) if dy is None else dy
        dx, dh, sums = norms.backward_operator(dy, dr, r, drawn, weight, bias, stats, *ctx.options)
        d_weight, d_bias = (sums, None) if bias is None else sums.view(2, -1)
        d_table = tables.table_gradient(dh if dh.numel() else dx, tokens, places or None, *ctx.table)
        return None, d_table, d_weight, d_bias, None, None, None, None, None, None, None


def embedding_norm(
    tokens_x: Tensor, weight_VD: Tensor, norm: Norm, *, places: Places | None, eps: float, kept_xD: Draws | None,
    keep: float, center: bool, dtype: torch.dtype | None, stream: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`embedding_norm.reference` by the kernels above."""
    stream = stream or weight_VD.dtype
    dtype = dtype or torch.promote_types(stream, norm[0].dtype)
    return _EmbeddingNorm.apply(tokens_x, weight_VD, *norm, kept_xD, places, keep, eps, center, dtype, stream)
