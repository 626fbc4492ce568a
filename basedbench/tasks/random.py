"""Counter-based randomness: every number is a pure function of (key, example index, draw number).

No generator is advanced and nothing is stored, so any example can be made alone, in any order, on any device. A device
gives the same bits as any other by construction: 64-bit integer arithmetic wraps around everywhere alike, and the one
function of real numbers (`exponential`) uses nothing but correctly rounded elementwise operations, each its own torch
call, so that none can be fused into a multiply-add.

Each example is one SplitMix64 stream (Steele, Lea, Flood 2014: "Fast splittable pseudorandom number generators") that
starts at a hash of the key and the example's index. Of n examples with d draws each, two streams overlap with
probability about n^2 d / 2^64: 2e-6 for the 180,000 examples of the published training set.
"""

import hashlib
import json

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # odd, 2^64 / golden ratio: the step of a SplitMix64 stream
_SPLITMIX = ((30, 27, 31), (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)))
_MURMUR3 = ((33, 33, 33), (_signed(0xFF51AFD7ED558CCD), _signed(0xC4CEB9FE1A85EC53)))

_NON_NEGATIVE = (1 << 63) - 1
_MANTISSA = (1 << 52) - 1
_ONE = 0x3FF0000000000000  # the bits of the float64 1.0
_SQRT_HALF = 0x3FE6A09E667F3BCD  # and of sqrt(1/2)
_LN_2 = 0.6931471805599453
_ATANH_TERMS = tuple(1.0 / n for n in range(21, 0, -2))


def stream_key(*parts: str | int | float) -> int:
    """A key (int64) from plain values; equal parts give equal keys on every machine, anything else another key."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little", signed=True)


def _xor_shift(x: Tensor, shift: int) -> None:
    high = x >> shift
    high &= (1 << (64 - shift)) - 1  # torch shifts int64 arithmetically; the mask makes it logical
    x ^= high


def _mix(x: Tensor, shifts: tuple[int, int, int], multipliers: tuple[int, int]) -> Tensor:
    """Scramble 64-bit words in place, one to one: xor-shift, multiply, xor-shift, multiply, xor-shift."""
    _xor_shift(x, shifts[0])
    x *= multipliers[0]
    _xor_shift(x, shifts[1])
    x *= multipliers[1]
    _xor_shift(x, shifts[2])
    return x


def example_states(key: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Where the streams of examples start ... start + count - 1 begin: (B,) int64, all different."""
    index_B = torch.arange(start, start + count, dtype=torch.int64, device=device)
    return _mix(index_B.mul_(_GOLDEN).add_(key), *_MURMUR3)


def random_bits(states_B: Tensor, first: int, count: int) -> Tensor:
    """Draws first ... first + count - 1 of each example's stream: (B, count) int64, all 64 bits uniform."""
    steps = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=states_B.device).mul_(_GOLDEN)
    return _mix(states_B[:, None] + steps, *_SPLITMIX)


def below(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Integers uniform in [0, bound), from 63 of the bits.

    The remainder favours some values by a factor of at most 1 + bound / 2^63: under 1e-14 for any vocabulary.
    """
    return (bits & _NON_NEGATIVE) % bound


def distinct(bits_BK: Tensor, bound: int) -> Tensor:
    """K distinct integers of [0, bound) per example, uniform without replacement, in random order: (B,K) int64.

    The first K steps of a Fisher-Yates shuffle of 0 ... bound - 1, for all steps at once and without the array: step i
    swaps places i and j_i >= i. Place p then holds what lay at place m, where m is the latest earlier step with
    j_m = p, or still p itself if there is none; following those links to their root takes log2(K) gathers.
    """
    K = bits_BK.shape[1]
    step = torch.arange(K, device=bits_BK.device)
    swap = step + below(bits_BK, bound - step)
    root = _shuffled_into(swap, step)
    for _ in range((K - 1).bit_length()):
        root = root.gather(1, root)
    previous = _previous_equal(swap)
    return torch.where(previous < 0, swap, root.gather(1, previous.clamp(min=0)))


def _shuffled_into(swap_BK: Tensor, step_K: Tensor) -> Tensor:
    """For each place p < K the latest earlier step m < p that swapped its content into p, or p: (B,K)."""
    B, K = swap_BK.shape
    elsewhere = (swap_BK >= K) | (swap_BK == step_K)
    latest = step_K.new_full((B, K + 1), -1)  # the last column takes what concerns no such place
    latest.scatter_reduce_(1, swap_BK.masked_fill(elsewhere, K), step_K.expand(B, K), "amax")
    return torch.where(latest[:, :K] < 0, step_K, latest[:, :K])


def _previous_equal(x_BK: Tensor) -> Tensor:
    """For each element the column of the nearest equal one to its left in the row, or -1: (B,K)."""
    ordered, column = torch.sort(x_BK, dim=1, stable=True)
    previous = torch.full_like(column, -1)
    previous[:, 1:] = torch.where(ordered[:, 1:] == ordered[:, :-1], column[:, :-1], -1)
    return torch.empty_like(previous).scatter_(1, column, previous)


def exponential(bits: Tensor) -> Tensor:
    """Standard exponential variates, float64 > 0, the same to the last bit on every device.

    -log(u) with u = n / 2^53 for odd n < 2^53. With n = 2^e m and m in [sqrt(1/2), sqrt(2)),
    -log(u) = (53 - e) log 2 - 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172; the series of atanh is cut where its
    terms fall below 1e-17. Error: a few units in the last place.
    """
    odd = ((bits >> 11) & ((1 << 53) - 1)) | 1
    words = odd.double().view(torch.int64) + (_ONE - _SQRT_HALF)  # exact: odd < 2^53
    halvings = (1023 + 53) - (words >> 52)
    m = (words & _MANTISSA).add_(_SQRT_HALF).view(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = torch.full_like(s, _ATANH_TERMS[0])
    for term in _ATANH_TERMS[1:]:
        series.mul_(square).add_(term)
    return halvings.double().mul_(_LN_2).sub_(series.mul_(s).mul_(2.0))
