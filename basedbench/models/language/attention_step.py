"""One query per sequence against a cache of keys and values: the part of softmax decoding that grows with the context.

    y = sum_{t < length} softmax_t(q . k_t / sqrt(K)) v_t

The cache has room for more tokens than it holds. How many count is a tensor on the device, so that one CUDA graph
serves every length. Not every implementation can use it:

    name             reads                      length            in a CUDA graph
    ours             `length` keys              device            yes
    sdpa-math        the whole cache, masked    device            yes
    sdpa-efficient   the whole cache, masked    device            yes
    sdpa-cudnn       the whole cache, masked    device            yes
    sdpa-flash       the first `extent` keys    host (`extent`)   one graph per length
    flash-varlen     `length` keys              device            yes

`ours` is `kernels.attention_decode`, which also turns the query and the new key and writes the cache: layers call it
for the whole step (layers.py). Here, where the cache holds the new token already, it writes the same token once more.

PyTorch's FlashAttention takes no mask. `sdpa-flash` therefore slices the cache, whose end the host must know; a graph
of it is right for one length only. `flash-varlen` is the same library through its interface for sequences of different
lengths, which reads the lengths on the device; it does not split the keys of one sequence over the GPU, so that it
needs many sequences. Both take heads that are a multiple of 8 wide: others are padded by copying the whole cache, by
PyTorch in the first, as here in the second. The caches come here as they are, so that this shows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from basedbench.errors import UserError, nearest
from basedbench.kernels import attention_decode

Implementation = Callable[[Tensor, Tensor, Tensor, Tensor, "int | None"], Tensor]
FLASH_MULTIPLE = 8
OURS = "ours"
HOST_LENGTH = ("sdpa-flash",)  # these need `extent`


def attention_step(
    q_BHK: Tensor,
    k_BLHK: Tensor,
    v_BLHV: Tensor,
    length_B: Tensor,
    *,
    implementation: str = "auto",
    extent: int | None = None,
) -> Tensor:
    """q (B,H,K), caches (B,L,H,K) and (B,L,H,V), tokens in the cache `length_B` (int) -> y (B,H,V).

    `extent` is the length as the host knows it, the same for all sequences; `sdpa-flash` alone needs it.
    """
    return IMPLEMENTATIONS[resolve(implementation, q_BHK.device)](q_BHK, k_BLHK, v_BLHV, length_B, extent)


def resolve(name: str, device: torch.device | str) -> str:
    """The implementation behind `auto`, or the name itself. UserError with the nearest name if there is none."""
    if name == "auto":
        return OURS if torch.device(device).type == "cuda" else "sdpa-math"
    if name not in IMPLEMENTATIONS:
        raise UserError(f"unknown attention implementation {name!r}: {nearest(name, [*IMPLEMENTATIONS, 'auto'])}")
    return name


def _masked(backend: SDPBackend) -> Implementation:
    """SDPA over the whole cache, what lies behind the length hidden by a mask."""

    def attend(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, length_B: Tensor, extent: int | None) -> Tensor:
        slot_L = torch.arange(k_BLHK.shape[1], device=q_BHK.device)
        mask_BxxL = (slot_L < length_B[:, None])[:, None, None]
        with sdpa_kernel(backend):
            return _sdpa(q_BHK, k_BLHK, v_BLHV, mask_BxxL)

    return attend


def _sliced(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, length_B: Tensor, extent: int | None) -> Tensor:
    """FlashAttention over the first `extent` keys."""
    if extent is None:
        raise UserError(
            "attention 'sdpa-flash' slices the cache, so the host must know the length: give `extent`, or choose an "
            "implementation that reads the length on the device, such as 'flash-varlen'."
        )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q_BHK, k_BLHK[:, :extent], v_BLHV[:, :extent], None)


def _sdpa(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, mask_BxxL: Tensor | None) -> Tensor:
    k_BHLK, v_BHLV = k_BLHK.transpose(1, 2), v_BLHV.transpose(1, 2)
    return F.scaled_dot_product_attention(q_BHK[:, :, None], k_BHLK, v_BHLV, attn_mask=mask_BxxL).squeeze(2)


def _varlen(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, length_B: Tensor, extent: int | None) -> Tensor:
    """FlashAttention for sequences of different lengths, each in its part of one long row of keys."""
    batch, room, _, width = k_BLHK.shape
    padding = -width % FLASH_MULTIPLE
    q, k, v = (F.pad(x, (0, padding)) if padding else x for x in (q_BHK, k_BLHK, v_BLHV))
    starts_q = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
    y_BHV, *_ = torch.ops.aten._flash_attention_forward(
        q, k.flatten(0, 1), v.flatten(0, 1), starts_q, starts_q * room, 1, room, 0.0, False, False,
        scale=width**-0.5, seqused_k=length_B.to(torch.int32),
    )  # fmt: skip
    return y_BHV[..., : v_BLHV.shape[-1]]


def _ours(q_BHK: Tensor, k_BLHK: Tensor, v_BLHV: Tensor, length_B: Tensor, extent: int | None) -> Tensor:
    row_B, last_B = torch.arange(len(q_BHK), device=q_BHK.device), length_B - 1
    return attention_decode(q_BHK, k_BLHK[row_B, last_B], v_BLHV[row_B, last_B], k_BLHK, v_BLHV, last_B)


IMPLEMENTATIONS: dict[str, Implementation] = {
    OURS: _ours,
    "sdpa-math": _masked(SDPBackend.MATH),
    "sdpa-efficient": _masked(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _masked(SDPBackend.CUDNN_ATTENTION),
    "sdpa-flash": _sliced,
    "flash-varlen": _varlen,
}
