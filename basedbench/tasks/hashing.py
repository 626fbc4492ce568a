"""Short fingerprints of data, so that a result row can say exactly which examples its model saw."""

import hashlib
from collections.abc import Iterable

from torch import Tensor

_DIGITS = 16


def batches_hash(batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> str:
    """16 hex digits that identify examples given as (tokens, positions, targets) batches, in order.

    It is a SHA-256 over the three SHA-256 digests of all tokens, all positions and all targets, each as little-endian
    int32 in row-major order; so it depends neither on the device nor on where one batch ends and the next begins.
    """
    parts = [hashlib.sha256() for _ in range(3)]
    for batch in batches:
        for part, tensor in zip(parts, batch, strict=True):
            part.update(tensor.int().cpu().numpy().astype("<i4", copy=False).tobytes())
    return hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()[:_DIGITS]


def combined_hash(hashes: Iterable[str]) -> str:
    """One 16-digit hash for several, in order: of a training set made of segments, say."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:_DIGITS]
