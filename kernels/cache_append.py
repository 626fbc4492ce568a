"""A new token's key and value into a cache of fixed size, in place, with query and key turned on the way.

What a decode step needs around somebody else's attention (`attention_decode` does it itself). Slot `length` of each
sequence is written; with `angles` (`rotary_angles` at `length_B`) q and k are turned first, as `rotary` turns them. On
CUDA one launch, which reads the lengths on the device.
"""

from torch import Tensor

from .precision import without_autocast
from .rotary import Angles, turned
from .shapes import checked_shapes


@without_autocast
def reference(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGV: Tensor,
    k_BLGK: Tensor,
    v_BLGV: Tensor,
    length_B: Tensor,
    *,
    angles: Angles | None = None,
) -> Tensor:
    """`cache_append` in PyTorch: any device."""
    if angles is not None:
        q_BHK, k_BGK = turned(q_BHK, angles), turned(k_BGK, angles)
    slot = length_B.long().view(-1, 1, 1, 1)
    for cache, x in ((k_BLGK, k_BGK), (v_BLGV, v_BGV)):
        cache.scatter_(1, slot.expand(-1, 1, *x.shape[1:]), x.to(cache.dtype).unsqueeze(1))
    return q_BHK


@checked_shapes({"2 R <= K": lambda R, K: 2 * R <= K}, angles=("BR", "BR"))
def cache_append(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGV: Tensor,
    k_BLGK: Tensor,
    v_BLGV: Tensor,
    length_B: Tensor,
    *,
    angles: Angles | None = None,
) -> Tensor:
    """Writes k and v into the caches (B,L,G,.) at `length_B`; returns q (B,H,K), turned if there are `angles` (B,R)."""
    if q_BHK.is_cuda:
        from . import cache_append_triton as kernels

        if kernels.unsupported(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, angles) is None:
            return kernels.cache_append(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, angles)
    return reference(q_BHK, k_BGK, v_BGV, k_BLGK, v_BLGV, length_B, angles=angles)


def flops(*, batch: int, heads: int, rotated: int) -> int:
    """3 per turned number of q and of k."""
    return batch * 2 * heads * rotated * 3


def bytes_moved(*, batch: int, heads: int, key_dim: int, value_dim: int, element_bytes: int = 2) -> int:
    """q, k and v in and out; the angles, which all heads read, are not counted."""
    return batch * heads * (2 * key_dim + value_dim) * 2 * element_bytes
