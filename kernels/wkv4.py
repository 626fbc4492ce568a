"""WKV, the weighted mean that mixes time in RWKV-4.

    y_t = (sum_i<t exp((t-1-i) w + k_i) v_i + exp(u + k_t) v_t) / (the same with 1 for v)

per channel; w < 0 the logarithm of the decay, u the bonus of the current token. Source: arXiv 2305.13048, section 3.1.2
(there with the sign of w turned). float32 (float64 for float64 inputs).

The state (B,3,D) is the two sums, divided by exp(m), and m, the running maximum of the exponents, so that no k is too
large. In parallel form the sums come from a scan over pairs, then pairs of pairs, which joins (m, sums) of what lies
left and right: 2 L joins in 2 log L operations. m cancels in y, so that it has no gradient and needs none.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .costs import total_bytes, total_flops
from .gluon_modules import usable
from .precision import accumulation_dtype, without_autocast
from .shapes import checked_shapes

NOTHING = -1e38  # the maximum before the first token: finite, for the difference of two infinities is NaN


class _Sums(NamedTuple):
    """exp(m) times `sums` (..., 2, D) of weighted values and of weights; m (..., 1, D) has no gradient."""

    m: Tensor
    sums: Tensor

    def at(self, part: slice) -> "_Sums":
        """Of some of the tokens (B, L, ...)."""
        return _Sums(self.m[:, part], self.sums[:, part])


def _weighted(v: Tensor, exponent: Tensor) -> _Sums:
    """Of single tokens: v, exponent (...,D) -> exp(exponent) (v, 1)."""
    m = exponent.detach()
    weight = (exponent - m).exp()  # 1, with a gradient
    return _Sums(m.unsqueeze(-2), torch.stack([weight * v, weight], -2))


def _joined(earlier: _Sums, later: _Sums, w: Tensor) -> _Sums:
    """The sum of both; the earlier one decays by exp(w)."""
    before = earlier.m + w
    m = torch.maximum(before, later.m).detach()
    return _Sums(m, earlier.sums * (before - m).exp() + later.sums * (later.m - m).exp())


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Elements 0, 2, ... and 1, 3, ... of (B, L, ...) in their order."""
    pairs = torch.stack([even[:, : odd.shape[1]], odd], 2).flatten(1, 2)
    return pairs if even.shape[1] == odd.shape[1] else torch.cat([pairs, even[:, -1:]], 1)


def _scan(x: _Sums, w: Tensor) -> _Sums:
    """Running sums over (B, L, ...), with a decay exp(w) from one element to the next."""
    length = x.m.shape[1]
    if length == 1:
        return x
    even, odd = x.at(slice(0, None, 2)), x.at(slice(1, None, 2))
    at_odd = _scan(_joined(even.at(slice(0, length // 2)), odd, w), 2 * w)
    at_even = even
    if length > 2:
        rest = _joined(at_odd.at(slice(0, (length - 1) // 2)), even.at(slice(1, None)), w)
        at_even = _Sums(*(torch.cat([first[:, :1], other], 1) for first, other in zip(even, rest, strict=True)))
    return _Sums(*(_interleaved(*both) for both in zip(at_even, at_odd, strict=True)))


def _opened(state_B3D: Tensor) -> _Sums:
    """A state as sums; its maximum, given from outside, may have a gradient."""
    m = state_B3D[:, 2:].detach()
    return _Sums(m, state_B3D[:, :2] * (state_B3D[:, 2:] - m).exp())


def _mean(before: _Sums, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """The output: what came before, and the current token with its bonus."""
    sums = _joined(before, _weighted(v, u + k), torch.zeros_like(u)).sums
    return sums[..., 0, :] / sums[..., 1, :]


@without_autocast
def reference(
    k_BLD: Tensor,
    v_BLD: Tensor,
    w_D: Tensor,
    u_D: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`wkv4` in PyTorch: differentiable, any device."""
    dtype = accumulation_dtype(v_BLD.dtype)
    k, v, w, u = (x.to(dtype) for x in (k_BLD, v_BLD, w_D, u_D))
    state = empty_state(k[:, 0]) if initial_state is None else initial_state.to(dtype)
    first, tokens = _opened(state), _weighted(v, k)
    whole = _scan(_Sums(*(torch.cat([a.unsqueeze(1), x], 1) for a, x in zip(first, tokens, strict=True))), w)
    y_BLD = _mean(whole.at(slice(0, -1)), k, v, u).to(v_BLD.dtype)
    return (y_BLD, torch.cat([whole.sums[:, -1], whole.m[:, -1]], 1)) if return_state else y_BLD


def empty_state(like_BD: Tensor) -> Tensor:
    """The state (B,3,D) before the first token."""
    state_B3D = like_BD.new_zeros(like_BD.shape[0], 3, like_BD.shape[1])
    state_B3D[:, 2] = NOTHING
    return state_B3D


@checked_shapes(initial_state="B3D")
def wkv4(
    k_BLD: Tensor,
    v_BLD: Tensor,
    w_D: Tensor,
    u_D: Tensor,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """k, v (B,L,D), w, u (D,) -> y (B,L,D), and the state (B,3,D) if asked for.

    w is the logarithm of the decay, below 0. `initial_state` continues a sequence; `empty_state` is that of none.
    """
    tensors = k_BLD, v_BLD, w_D, u_D
    if v_BLD.is_cuda and usable("wkv4_triton", "wkv4"):
        from . import wkv4_triton as kernels

        if kernels.unsupported(*tensors, initial_state) is None:
            return kernels.wkv4(*tensors, initial_state=initial_state, return_state=return_state)
    return reference(*tensors, initial_state=initial_state, return_state=return_state)


@checked_shapes()
def wkv4_step(k_BD: Tensor, v_BD: Tensor, w_D: Tensor, u_D: Tensor, state_B3D: Tensor) -> Tensor:
    """One decode step. Updates `state_B3D` in place; returns y (B,D) in the dtype of v.

    On CUDA a Triton kernel computes it, except for gradients, and states not in float32 or not contiguous.
    """
    if v_BD.is_cuda:
        from . import wkv4_step_triton as fused

        if fused.supported(k_BD, v_BD, w_D, u_D, state_B3D):
            return fused.step(k_BD, v_BD, w_D, u_D, state_B3D)
    return step_reference(k_BD, v_BD, w_D, u_D, state_B3D)


@without_autocast
def step_reference(k_BD: Tensor, v_BD: Tensor, w_D: Tensor, u_D: Tensor, state_B3D: Tensor) -> Tensor:
    """`wkv4_step` in PyTorch."""
    k, v, w, u = (x.to(state_B3D.dtype) for x in (k_BD, v_BD, w_D, u_D))
    before = _opened(state_B3D)
    y_BD = _mean(before, k, v, u)
    after = _joined(before, _weighted(v, k), w)
    state_B3D.copy_(torch.cat([after.sums, after.m], 1))
    return y_BD.to(v_BD.dtype)


def flops(*, batch: int, length: int, channels: int, state: bool = False, backward: bool = False) -> int:
    """Per token-channel 23.

    State: decay of the maximum, maximum, two differences and exponentials (6), two sums (5). Output: u + k, maximum,
    two differences and exponentials (6), two sums (5), the quotient.
    """
    return total_flops(batch * length * channels * 23, backward=backward)


def bytes_moved(
    *,
    batch: int,
    length: int,
    channels: int,
    element_bytes: int = 2,
    state: bool = False,
    backward: bool = False,
) -> int:
    """k, v in, w and u in float32, y out; with `state` 3 D float32 in and out per sequence."""
    return total_bytes(
        2 * batch * length * channels,
        batch * length * channels,
        wide=2 * channels,
        state=3 * batch * channels if state else 0,
        element_bytes=element_bytes,
        backward=backward,
    )
