"""The token shift of RWKV: mixtures of every token with the one before it, several from one reading.

    y_m,t = x_t + mu_m (x_t-1 - x_t)        x_-1 = 0

per channel, for each row m of mu (M,D). Sources: RWKV-4, arXiv 2305.13048, equations 11 to 13 (there with 1 - mu);
RWKV-7, arXiv 2503.14456, section 4. float32 inside (float64 for float64 inputs).
"""

from torch import Tensor
from torch.nn import functional as F

from .costs import total_bytes
from .precision import accumulation_dtype
from .shapes import checked_shapes


def mixed(x_xD: Tensor, previous_xD: Tensor, mu_MD: Tensor) -> list[Tensor]:
    """The mixtures of tokens and those before them, any shape; in the dtype of x."""
    wide = accumulation_dtype(x_xD.dtype)
    x, change = x_xD.to(wide), previous_xD.to(wide) - x_xD.to(wide)
    return [(x + change * mu_D).to(x_xD.dtype) for mu_D in mu_MD.to(wide)]


def reference(x_BLD: Tensor, mu_MD: Tensor) -> list[Tensor]:
    """`token_shift` in PyTorch: differentiable, any device."""
    return mixed(x_BLD, F.pad(x_BLD, (0, 0, 1, -1)), mu_MD)


@checked_shapes()
def token_shift(x_BLD: Tensor, mu_MD: Tensor) -> list[Tensor]:
    """x (B,L,D), mu (M,D) -> M tensors (B,L,D) in the dtype of x."""
    if x_BLD.is_cuda:
        from . import token_shift_triton as kernels

        if x_BLD.dtype in kernels.DTYPES and mu_MD.dtype in kernels.DTYPES:
            return kernels.token_shift(x_BLD, mu_MD)
    return reference(x_BLD, mu_MD)


def flops(*, batch: int, length: int, channels: int, mixtures: int, backward: bool = False) -> int:
    """A difference, then two operations for each mixture; backward: three for each, and two sums."""
    forward = batch * length * channels * (1 + 2 * mixtures)
    return forward + (batch * length * channels * 5 * mixtures if backward else 0)


def bytes_moved(
    *, batch: int, length: int, channels: int, mixtures: int, element_bytes: int = 2, backward: bool = False
) -> int:
    """x in, the mixtures out; the backward reads x and all gradients, and writes one."""
    tokens = batch * length * channels
    return total_bytes(tokens, mixtures * tokens, element_bytes=element_bytes, backward=backward)
