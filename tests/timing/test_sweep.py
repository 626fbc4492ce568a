"""Whole sweeps on the CPU: groups, rows, and what is left to do."""

from pathlib import Path

import pytest

from basedbench.config.throughput import MeasureSection
from basedbench.plugins import load_plugin
from basedbench.store import Store, load
from basedbench.timing.choose import pending
from basedbench.timing.sweep import Sweep, groups
from tests.timing.conftest import make_case

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
