"""What a sweep under a time limit knows of how long its runs or cases take, before and while it goes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.engines.deadline import Pace
from basedbench.engines.local import Place
from basedbench.training.cases import RecallCase
from basedbench.training.cost import estimate

Row = Mapping[str, Any]
PREPARE_S = 2.0  # of a case: building, checking, first call; most take less, those with kernels to tune far more


def pace_of_runs(
    places: Sequence[Place], cases: Sequence[RecallCase], left: int, stored: Iterable[Row]
) -> Pace[RecallCase]:
    """For recall: guesses are those of `--dry-run`; `stored` are the suite's rows from this device.

    Both are a run's share of the device; with others beside it, it takes as many times longer: as many as fit, or as
    there are `left`.
    """
    device, beside = places[0].device, max(1, min(places[0].slots, -(-left // len(places))))
    pace: Pace[RecallCase] = Pace(
        lambda case: beside * estimate(case, device).seconds,
        lambda case: ((case.model_label, case.layer_mixers), case.mixer),
    )
    for case, row in _known({case.case_id: case for case in cases}, stored):
        if row["train_s"]:
            pace.learn(case, beside * row["train_s"])
    return pace


def fewer_at_once(places: Sequence[Place], cases: Sequence[RecallCase], limit_s: float) -> list[Place]:
    """Under a time limit as many runs at once as would end within half of it; `places` as they are without one.

    All that begin together end together: twelve long ones may take until just after the limit, and nothing is done. Six
    fill a device nearly as well. Runs that would not end in time by themselves do not count.
    """
    shares = [estimate(case, place.device).seconds for place in places[:1] for case in cases]
    longest = max((share for share in shares if share <= limit_s / 2), default=0.0)

    def slots(place: Place) -> int:
        halved = (place.slots >> times for times in range(place.slots.bit_length()))
        return next((count for count in halved if count * longest <= limit_s / 2), 1)

    return [replace(place, slots=slots(place)) for place in places]


def pace_of_cases(measure: MeasureSection, cases: Sequence[AnyCase], stored: Iterable[Row]) -> Pace[AnyCase]:
    """For throughput: about the same for all, until some are done; `stored` are the suite's rows from this device."""
    guess = PREPARE_S + measure.max_rounds * measure.round_ms * 1e-3
    pace: Pace[AnyCase] = Pace(lambda case: guess, lambda case: ((*case.implementation, case.mode), case.subject))
    for case, row in _known({case.id: case for case in cases}, stored):
        if row["prepare_s"] is not None and row["sampling_s"] is not None:
            pace.learn(case, row["prepare_s"] + row["sampling_s"])
    return pace


def _known(cases: Mapping[str, Any], stored: Iterable[Row]) -> Iterable[tuple[Any, Row]]:
    return ((cases[row["case_id"]], row) for row in stored if row["status"] == "ok" and row["case_id"] in cases)
