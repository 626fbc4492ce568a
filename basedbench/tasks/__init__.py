"""Synthetic tasks whose examples are a pure function of (seed, split, segment, index)."""

from basedbench.tasks.hashing import batches_hash, combined_hash
from basedbench.tasks.mqar import MQAR, window_accuracy

__all__ = ["MQAR", "batches_hash", "combined_hash", "window_accuracy"]
