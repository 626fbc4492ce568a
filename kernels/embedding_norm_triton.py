"""`embedding_norm` by the kernels of `add_layer_norm` and `embedding`."""

# mypy: allow-untyped-defs

import torch
from torch import Tensor

from . import add_layer_norm_triton as norms
from . import embedding_triton as tables
from .block_boundary import Norm
from .draws import Draws
from .embedding import Places, Rows


class _EmbeddingNorm(torch.autograd.Function):
    """Keeps the stream, or the table that it can be had from again, the statistics and what stays."""

    @staticmethod
    def forward(ctx, tokens, table, weight, bias, draws, places, keep, eps, center, dtype, stream, written):
        seed, steps = draws or (0, None)
        shape = (*tokens.shape, table.shape[1])
        y, r = table.new_empty(shape, dtype=dtype), table.new_empty(shape if written else 0, dtype=stream)
        stats = table.new_empty((2, tokens.numel()), dtype=torch.float32)
        drawn = None if steps is None else table.new_empty(shape, dtype=torch.uint8)
        given = table.contiguous(), None, None, steps, tokens.contiguous(), weight, bias
        norms.launch_forward(*given, seed, keep, eps, center, y, r, stats, drawn)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(tokens, r if written else table, drawn, weight, bias, stats, *(places or ()))
        ctx.table, ctx.options = (len(table), table.dtype), (keep, False, center, table.dtype)
        ctx.written, ctx.outputs = written, (shape, dtype)
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        # Unwritten, it has the shape that its gradient will have, and no memory.
        return y, r if written else table.new_empty((), dtype=stream).expand(shape), drawn

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dr, _):
        tokens, r, drawn, weight, bias, stats, *places = ctx.saved_tensors
        shape, dtype = ctx.outputs
        dy = torch.zeros(shape, dtype=dtype, device=r.device) if dy is None else dy
        named = None if ctx.written else tokens
        dx, dh, sums = norms.backward_operator(dy, dr, r, named, drawn, weight, bias, stats, *ctx.options)
        d_weight, d_bias = (sums, None) if bias is None else sums.view(2, -1)
        d_table = tables.table_gradient(dh if dh.numel() else dx, tokens, places or None, *ctx.table)
        return None, d_table, d_weight, d_bias, None, None, None, None, None, None, None, None


def embedding_norm(
    tokens_x: Tensor, weight_VD: Tensor, norm: Norm, *, places: Places | None, eps: float, kept_xD: Draws | None,
    keep: float, center: bool, dtype: torch.dtype | None, stream: torch.dtype | None = None, written: bool = True,
) -> tuple[Tensor, Tensor, Rows | None]:  # fmt: skip
    """`embedding_norm.reference` by the kernels above, or `unwritten_embedding_norm`."""
    stream = stream or weight_VD.dtype
    dtype = dtype or torch.promote_types(stream, norm[0].dtype)
    options = kept_xD, places, keep, eps, center, dtype, stream, written
    y_xD, r_xD, kept = _EmbeddingNorm.apply(tokens_x, weight_VD, *norm, *options)
    return y_xD, r_xD, None if written else Rows(weight_VD.detach(), tokens_x, kept, keep)
