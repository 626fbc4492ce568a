"""Whole sweeps on the CPU: groups, rows, and what is left to do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from basedbench.config.throughput import AnyCase, MeasureSection
from basedbench.engines.deadline import Deadline, Pace, TimeUp
from basedbench.plugins import load_plugin
from basedbench.store import Store, load
from basedbench.timing import sweep as sweeps
from basedbench.timing.choose import pending
from basedbench.timing.room import PROCESS_BYTES, side_by_side
from basedbench.timing.sweep import Sweep, groups, neighbours
from basedbench.timing.worker import Worker, Workers
from tests.timing.conftest import MockClock, make_case, make_model_case

PLUGIN = str(Path(__file__).with_name("plugin_misbehaving.py"))
MEASURE = MeasureSection(round_ms=1, min_rounds=3, max_rounds=4, seconds=0.2, timeout=60)


def test_cases_at_the_same_place_are_one_group_whatever_their_operator() -> None:
    against = {"baseline": "attention/sdpa-math"}
    attention = [make_case("sdpa-math", operator="attention", baseline="sdpa-math", length=n) for n in (8, 16)]
    narrow = [make_case("ours", length=n, **against) for n in (8, 16)]
    wide = [make_case("ours", length=n, key_dim=8, **against) for n in (8, 16)]
    found = groups([*attention, *narrow, *wide])
    assert found == [[attention[0], narrow[0]], [attention[1], narrow[1]], [wide[0]], [wide[1]]]


def test_no_group_has_a_contender_twice() -> None:
    cases = [make_case(name, key_dim=k, heads=h) for k in (4, 8) for h in (1, 2) for name in ("ours", "reference")]
    found = groups(cases)
    assert [len(group) for group in found] == [2, 2, 2, 2]
    for group in found:
        assert len({(case.operator, case.contender) for case in group}) == len(group)


def test_groups_of_the_same_models_are_neighbours_and_keep_their_order() -> None:
    narrow, wide = ({"overrides": {"window": window}} for window in (4, 8))
    cases = [make_model_case(length=n, **one) for n in (16, 32) for one in (narrow, wide)]
    cases += [make_model_case(length=16, dtype="bf16", **narrow), make_model_case(length=64, **narrow)]
    assert groups(cases) == [[case] for case in cases]
    assert neighbours(groups(cases)) == [[cases[index]] for index in (0, 2, 5, 1, 3, 4)]
    operators = [make_case(length=n, key_dim=k) for n in (8, 16) for k in (4, 8)]
    assert neighbours(groups(operators)) == groups(operators)
    alone = [make_case("ours", length=8), make_case("reference", length=16), make_case("ours", length=24)]
    assert neighbours(groups(alone)) == [[alone[0]], [alone[2]], [alone[1]]]


def test_what_no_device_could_hold_is_a_row_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "of", lambda self, case: pytest.fail("a worker was started"))
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.free_bytes = 2**32
    sweep.run([make_model_case("attention", batch=2**16, length=2**14)], lambda row: None)
    row = load(tmp_path, "throughput").iloc[0]
    assert row["status"] == "oom"
    assert row["reason"] == "needs 512.0 GiB of memory, 4.0 GiB are free"  # 2 layers, 2 x 32 numbers, 4 bytes
    assert row["median_ms"] is None or row["median_ms"] != row["median_ms"]


def test_models_that_do_not_fit_beside_each_other_are_timed_one_after_the_other(tmp_path: Path) -> None:
    cases = [make_model_case("attention", batch=2**10, length=2**7), make_model_case("based", batch=2**10, length=2**7)]
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.free_bytes = 2 * PROCESS_BYTES + int(1.1 * 2**26)  # the keys and values of the first are 2**26
    assert side_by_side(cases, sweep.free_bytes, 2) == [[cases[0]], [cases[1]]]
    seen: list[str] = []
    sweep.run(cases, lambda row: seen.append(row["model"]))
    assert seen == ["attention-360m", "based-360m"]
    assert set(load(tmp_path, "throughput")["status"]) == {"ok"}


def test_the_workers_of_models_live_as_long_as_a_later_group_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[set[str], set[str]]] = []
    start = Workers.start

    def noted(self: Workers, cases: list[AnyCase], later: list[AnyCase]) -> None:
        started.append(({case.subject for case in cases}, {case.subject for case in later}))
        start(self, cases, later)

    monkeypatch.setattr(Workers, "start", noted)
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.free_bytes = sweep.gpu_bytes = 2**33
    shapes = {"length": 8}, {"length": 2**20, "batch": 2**8}, {"length": 16}
    cases = [make_model_case(family, **shape) for family in ("based", "attention") for shape in shapes]
    seen: list[str] = []
    sweep.run([*cases, make_case("ours", length=8)], lambda row: seen.append(row["status"]))
    both, based, operator = {"attention-360m", "based-360m"}, {"based-360m"}, {"taylor_attention"}
    assert started == [(both, both | operator), (both, based | operator), (based, operator), (operator, set())]
    assert seen == ["oom", *["ok"] * 6]


class Noted(Workers):
    """Workers that note what is asked of them, beside a GPU that there is none of."""

    def __init__(self, device: str, plugins: list[str]) -> None:
        super().__init__("cpu", plugins)
        NOTES.clear()

    def start(self, cases: list[AnyCase], later: list[AnyCase] = ()) -> None:
        NOTES.append(("start", {case.contender for case in cases}, {case.contender for case in later}))
        super().start(cases, later)

    def wait(self) -> None:
        NOTES.append(("wait",))
        super().wait()


NOTES: list[tuple[object, ...]] = []


def test_workers_come_up_during_the_rehearsal_and_ceilings_are_found_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "Workers", Noted)
    monkeypatch.setattr(Sweep, "_rehearse", lambda self, workers, cases: NOTES.append(("rehearse", len(list(cases)))))
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.device, sweep.gpu_bytes = "cuda:0", 2**33  # one process may wait

    def find(workers: Workers, case: AnyCase) -> dict[str, float]:
        NOTES.append(("ceilings", case.contender, len(workers)))
        return {"copy": 1e10}

    sweep.find_ceilings = find
    attention = make_case("sdpa-math", operator="attention", length=8, baseline="sdpa-math")
    cases = [attention, make_case("ours", length=16), make_case("reference", length=24)]
    sweep.run(cases, lambda row: NOTES.append(("row", row["contender"], row["bandwidth_fraction"] > 0)))
    assert NOTES[:4] == [
        ("start", {"sdpa-math"}, set()),
        ("rehearse", 3),
        ("wait",),
        ("ceilings", "sdpa-math", 1),
    ]
    rows = [note for note in NOTES if note[0] == "row"]
    assert rows == [("row", name, True) for name in ("sdpa-math", "ours", "reference")]
    kept = [note[2] for note in NOTES if note[0] == "start"][1:]
    assert kept == [{"ours"}, {"reference"}, {"ours"}]  # in the end one that is done


def test_workers_check_their_cases_beside_each_other_before_any_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "Workers", Noted)
    monkeypatch.setattr(sweeps, "cache_folder", lambda: tmp_path / "cache")
    rehearse = Worker.rehearse

    def noting(self: Worker, case: AnyCase, measure: MeasureSection) -> object:
        NOTES.append(("checked", case.contender, case.length))
        return rehearse(self, case, measure)

    monkeypatch.setattr(Worker, "rehearse", noting)
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.device, sweep.gpu_bytes = "cuda:0", 2**34  # two processes may wait
    cases = [make_case(name, length=length) for length in (8, 16) for name in ("reference", "ours")]
    sweep.run(cases, lambda row: NOTES.append(("row", row["contender"], row["status"], row["error"] is not None)))
    kinds = [note[0] for note in NOTES]
    assert 2 <= kinds.count("checked") <= 4  # the last one at it leaves its own to their turn
    assert max(i for i, kind in enumerate(kinds) if kind == "checked") < kinds.index("row")
    rows = [note for note in NOTES if note[0] == "row"]
    assert sorted(rows) == sorted(("row", case.contender, "ok", True) for case in cases)
    assert set(sweep.spent) == {"calling and checking first", "ceilings"}
    assert set(sweep.called) <= {"taylor_attention/reference", "taylor_attention/ours"}
    assert all(seconds > 0 for seconds in sweep.called.values())
    assert sweep.called


@pytest.mark.usefixtures("own_registries")
def test_every_worker_imports_what_its_first_calls_will_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for every mode, and those too that call nothing in company."""
    monkeypatch.setattr(sweeps, "Workers", Noted)
    monkeypatch.setattr(sweeps, "cache_folder", lambda: tmp_path / "cache")
    imports = Worker.imports

    def noting(self: Worker, case: AnyCase) -> object:
        NOTES.append(("imports", case.contender, case.mode))
        return imports(self, case)

    monkeypatch.setattr(Worker, "imports", noting)
    load_plugin(PLUGIN)
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE, [PLUGIN])
    sweep.device, sweep.gpu_bytes = "cuda:0", 2**35  # five processes may wait
    modes = ("fwd", "fwd_bwd")
    cases = [make_case(name, length=n, mode=mode) for mode in modes for n in (8, 16) for name in ("ours", "reference")]
    cases += [make_case("good", length=24)]
    sweep.run(cases, lambda row: NOTES.append(("row", row["contender"])))
    kinds = [note[0] for note in NOTES]
    found = sorted(note[1:] for note in NOTES if note[0] == "imports")
    assert found == [("good", "fwd"), *((name, mode) for name in ("ours", "reference") for mode in modes)]
    assert len(kinds) - kinds[::-1].index("imports") <= kinds.index("row")


def test_what_is_left_to_do() -> None:
    done, failed, new = (make_case(length=n) for n in (1, 2, 3))
    rows = [{"case_id": done.id, "status": "ok"}, {"case_id": failed.id, "status": "oom"}]
    cases = [done, failed, new]
    assert pending(cases, rows, fresh=False, retry=[]) == [new]
    assert pending(cases, rows, fresh=False, retry=["oom", "crashed"]) == [failed, new]
    assert pending(cases, rows, fresh=True, retry=[]) == cases


@pytest.mark.usefixtures("own_registries")
def test_every_case_has_a_row_whatever_happens_to_it(tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    names = ["ours", "dies", "wrong", "mamba_ssm", "reference"]
    cases = [make_case(name) for name in names]
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE, [PLUGIN])
    sweep.ceilings = {"copy": 1e10, "matmul_fp32": 1e11}
    seen: list[str] = []
    sweep.run(cases, lambda row: seen.append(row["contender"]))
    frame = load(tmp_path, "throughput").set_index("contender")
    assert sorted(seen) == sorted(names) == sorted(frame.index)
    assert frame["status"].to_dict() == {
        "ours": "ok",
        "reference": "ok",
        "dies": "crashed",
        "wrong": "incorrect",
        "mamba_ssm": "unsupported",
    }
    row = frame.loc["ours"]
    assert row["ci_low_ms"] <= row["median_ms"] <= row["ci_high_ms"]
    assert row["rounds"] == len(row["round_medians_ms"]) == len(row["round_sizes"]) >= 3
    assert sum(row["round_sizes"]) == len(row["samples_ms"])
    assert row["tokens_per_s"] == pytest.approx(48 / row["median_ms"] * 1e3)
    assert row["bandwidth_fraction"] == pytest.approx(row["bytes"] / row["median_ms"] * 1e3 / 1e10)
    assert row["flops_fraction"] == pytest.approx(row["flops"] / row["median_ms"] * 1e3 / 1e11)
    assert row["baseline"] == "taylor_attention/reference"
    assert frame.loc["wrong"]["error"] == pytest.approx(1.0)
    assert frame.loc["wrong"]["samples_ms"] is None
    assert set(frame["threads"]) == {torch.get_num_threads()}  # where a failure belongs in a figure


class Guesses(Pace[AnyCase]):
    """A second for every case, whatever it took."""

    def seconds(self, item: AnyCase) -> float:
        return 1.0


def test_with_a_time_limit_a_part_of_what_is_left_is_called_ahead_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """Each case before it is timed, in the order of timing, and none of those that the limit leaves."""
    events: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(
        Sweep, "_rehearse", lambda self, workers, cases: events.append(("called", [case.length for case in cases]))
    )
    cases = [make_case("ours", length=length) for length in range(1, 21)]
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.find_ceilings = lambda workers, case: events.append(("ceilings", [])) or {}
    sweep.deadline = Deadline(12.5, 0.0, Guesses(lambda case: 1.0, lambda case: (case.id,)), clock.now)

    def on_row(row: Any) -> None:
        events.append(("timed", [row["length"]]))
        clock.advance(1.0)

    sweep.run(cases, on_row)
    called = [lengths for what, lengths in events if what == "called"]
    assert called == [[1, 2, 3, 4, 5, 6], [7, 8, 9], [10], [11], [12]]
    assert [what for what, _ in events].count("ceilings") == 1
    timed = [lengths[0] for what, lengths in events if what == "timed"]
    assert timed == list(range(1, 13))
    for length in timed:
        first = next(place for place, (what, lengths) in enumerate(events) if what == "called" and length in lengths)
        assert first < events.index(("timed", [length]))


def test_what_would_end_too_late_once_it_was_called_ahead_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    """What is under way when the time is up is lost; a shorter one would not be."""
    monkeypatch.setattr(Sweep, "_rehearse", lambda self, workers, cases: clock.advance(len(cases) // 2 * 2.0))
    pair = [make_case(name, length=8) for name in ("ours", "reference")]
    alone = make_case("ours", length=16)
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.deadline = Deadline(3.5, 0.0, Guesses(lambda case: 1.0, lambda case: (case.id,)), clock.now)
    rows: list[int] = []
    sweep.run([*pair, alone], lambda row: rows.append(row["length"]))
    assert rows == [16]
    assert sweep.left == pair
    assert sweep.under_way == []


def test_what_was_only_called_ahead_when_the_time_was_up_was_not_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_is_up(self: Sweep, workers: Workers, cases: list[AnyCase]) -> None:
        raise TimeUp

    monkeypatch.setattr(Sweep, "_rehearse", time_is_up)
    sweep, cases = Sweep("own", Store(tmp_path), "cpu", MEASURE), [make_case("ours", length=8)]
    with pytest.raises(TimeUp):
        sweep.run(cases, lambda row: None)
    assert (sweep.left, sweep.under_way) == (cases, [])


def test_without_a_limit_all_is_called_ahead_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(Sweep, "_rehearse", lambda self, workers, cases: called.append(len(cases)))
    Sweep("own", Store(tmp_path), "cpu", MEASURE).run([make_case("ours", length=n) for n in (8, 16)], lambda row: None)
    assert called == [2]


def test_only_groups_that_end_in_time_are_timed(tmp_path: Path, clock: MockClock) -> None:
    """Of three pairs of contenders one, and what is alone."""
    pairs = [make_case(name, length=n) for n in (8, 16, 24) for name in ("ours", "reference")]
    alone = make_case("ours", length=32)
    sweep = Sweep("own", Store(tmp_path), "cpu", MEASURE)
    sweep.deadline = Deadline(3.5, 0.0, Guesses(lambda case: 1.0, lambda case: (case.id,)), clock.now)
    rows: list[Any] = []

    def on_row(row: Any) -> None:
        rows.append(row["length"])
        clock.advance(1.0)

    sweep.run([*pairs, alone], on_row)
    assert rows == [8, 8, 32]
    assert sweep.left == pairs[2:]
    assert sweep.under_way == []
