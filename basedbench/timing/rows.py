"""From a measurement to the row that is stored."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import median
from typing import Any

import torch

from basedbench.config.throughput import AnyCase
from basedbench.store.schema import blank_row
from basedbench.timing.rounds import Measurement
from basedbench.timing.samples import Round
from basedbench.timing.statistics import outliers, round_interval
from basedbench.timing.telemetry import summary


def throughput_row(
    measurement: Measurement, suite: str, origin: Mapping[str, Any], ceilings: Mapping[str, float]
) -> dict[str, Any]:
    """The whole row. `origin` holds where it comes from; `ceilings` what this machine can do, by name."""
    case = measurement.case
    row = blank_row("throughput") | case.columns
    row |= {"suite": suite, "case_id": case.id, "cache": case.cache, "device": case.device}
    row |= {"threads": threads_of(case.device, case.threads)}
    row |= {"baseline": "/".join(case.baseline_key), "stop_reason": measurement.stop_reason}
    row |= dict(origin) | measurement.facts
    row |= {"prepare_s": measurement.prepare_s, "sampling_s": measurement.sampling_s}
    if measurement.rounds:
        row |= times(measurement.rounds) | _quality(measurement.rounds)
        row["tokens_per_s"] = case.tokens / row["median_ms"] * 1e3
        row |= _fractions(case, row, ceilings)
    return row


def threads_of(device: str, asked: int | None = None) -> int | None:
    """The threads that a case has, before its worker says so: a failure is told beside what it would be compared with.

    A worker's default is that of this process.
    """
    return (asked or torch.get_num_threads()) if device == "cpu" else None


def times(rounds: Sequence[Round]) -> dict[str, Any]:
    """The columns of every timed row: the published interval, all samples, and the card's state."""
    medians = [median(one.samples_ms) for one in rounds]
    middle, low, high = round_interval(medians)
    return {
        "median_ms": middle,
        "ci_low_ms": low,
        "ci_high_ms": high,
        "samples_ms": list(chain.from_iterable(one.samples_ms for one in rounds)),
        "rounds": len(rounds),
        "round_medians_ms": medians,
        **summary(list(chain.from_iterable(one.readings for one in rounds))),
    }


def _quality(rounds: Sequence[Round]) -> dict[str, Any]:
    """What a reader should know of the samples."""
    return {
        "round_sizes": [len(one.samples_ms) for one in rounds],
        "outliers": outliers([one.samples_ms for one in rounds]),
        "exposed_samples": sum(one.exposed for one in rounds),
    }


def _fractions(case: AnyCase, row: Mapping[str, Any], ceilings: Mapping[str, float]) -> dict[str, float]:
    """The share of the measured ceilings that the least work of the case reaches in its time."""
    seconds = row["median_ms"] / 1e3
    fractions = {}
    if rate := ceilings.get("copy"):
        fractions["bandwidth_fraction"] = row["bytes"] / seconds / rate
    if rate := ceilings.get(f"matmul_{case.dtype}"):
        fractions["flops_fraction"] = row["flops"] / seconds / rate
    return fractions
