"""Throughput rows per token, and how they are sorted into panels."""

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis.timings import panels_of, shared_conditions, timings
from basedbench.errors import UserError


def row(operator="ssd", contender="ours", length=1024, median_ms=2.0, **more):
    values = {"operator": operator, "contender": contender, "mode": "fwd", "dtype": "bf16", "batch": 4}
    values |= {"length": length, "heads": 16, "key_dim": 16, "value_dim": 64, "config": "{}", "status": "ok"}
    values |= {"median_ms": median_ms, "ci_low_ms": 0.9 * median_ms, "ci_high_ms": 1.1 * median_ms}
    values |= {"cache": "cold", "device_name": "H200", "baseline": contender, "model": None} | more
    tokens = values["batch"] * (1 if values["mode"] == "decode" else length)
    return values | {"tokens_per_s": tokens / median_ms * 1e3}


def test_time_per_token_with_its_interval():
    (point,) = timings(pd.DataFrame([row()])).to_dict("records")
    per_token = 2e-3 / 4096
    assert (point["value"], point["low"], point["high"]) == pytest.approx((per_token, 0.9 * per_token, 1.1 * per_token))


def test_a_decode_step_makes_one_token_per_sequence():
    assert timings(pd.DataFrame([row(mode="decode")]))["value"].tolist() == pytest.approx([2e-3 / 4])


def test_the_longest_time_is_the_lowest_rate():
    (point,) = timings(pd.DataFrame([row()]), "tokens_per_s").to_dict("records")
    rate = 4096 / 2e-3
    assert (point["value"], point["low"], point["high"]) == pytest.approx((rate, rate / 1.1, rate / 0.9))


def test_a_failure_has_no_value_even_if_it_was_timed():
    values = timings(pd.DataFrame([row(), row(status="incorrect")]), "median_ms")["value"]
    np.testing.assert_array_equal(values, [2.0, np.nan])


def test_an_interval_that_reaches_below_zero_has_an_open_end():
    (time,) = timings(pd.DataFrame([row(ci_low_ms=-0.5)])).to_dict("records")
    assert np.isnan(time["low"])
    assert time["high"] > time["value"]
    (rate,) = timings(pd.DataFrame([row(ci_low_ms=-0.5)]), "tokens_per_s").to_dict("records")
    assert np.isnan(rate["high"])
    assert rate["low"] < rate["value"]


def test_unknown_measure():
    with pytest.raises(UserError, match="did you mean 'tokens_per_s'"):
        timings(pd.DataFrame([row()]), "token_per_s")


def panels(*rows):
    return panels_of(timings(pd.DataFrame(list(rows))))


def test_one_panel_per_operator_and_mode():
    titles = [
        (panel.title, panel.mode)
        for panel in panels(row(), row(contender="fla"), row(mode="fwd_bwd"), row("short_conv"))
    ]
    assert titles == [("Ssd", "forward"), ("Ssd", "forward and backward"), ("Short conv", "forward")]


def test_a_failure_that_does_not_say_its_threads_stands_with_the_others_of_its_device():
    failed = {"status": "crashed", "threads": None}
    (panel,) = panels(row(threads=2), row(contender="dies", threads=2, length=512), row(contender="dies", **failed))
    assert [len(series.rows) for series in panel.series] == [1, 2]
    several = panels(row(threads=1), row(threads=2), row(contender="dies", **failed))
    assert len(several) == 3  # nobody knows which
    assert len(panels(row(threads=None), row(contender="dies", **failed))) == 1


def test_operators_measured_against_another_join_its_panel():
    (panel,) = panels(
        row("taylor_attention", baseline="attention/sdpa", key_dim=16), row("attention", "sdpa", key_dim=64)
    )
    assert panel.title == "Attention and taylor attention"
    assert [series.name for series in panel.series] == ["taylor attention: ours", "attention: sdpa"]
    assert [series.variant for series in panel.series] == ["", ""]


def test_a_title_of_many_operators_is_short():
    others = [row(name, baseline="attention/sdpa") for name in ("taylor_attention", "linear_attention")]
    (panel,) = panels(row("attention", "sdpa"), *others)
    assert panel.title == "Attention and 2 others"


def test_what_varies_in_a_panel_names_its_lines():
    (panel,) = panels(row(batch=2), row(batch=16), row(batch=2, length=2048), row(batch=16, length=2048))
    assert [series.variant for series in panel.series] == ["B 2", "B 16"]
    assert all(series.rows["length"].tolist() == [1024, 2048] for series in panel.series)


def test_batch_is_the_axis_where_only_it_varies():
    (panel,) = panels(row(mode="decode", batch=8), row(mode="decode", batch=1))
    assert panel.x == "batch"
    assert panel.series[0].rows["batch"].tolist() == [1, 8]


def test_too_many_lines_are_split_by_batch():
    rows = [row(batch=b, contender=c, length=n) for b in (1, 2, 4) for c in "abcd" for n in (1024, 2048)]
    assert [(panel.conditions, len(panel.series)) for panel in panels(*rows)] == [("B 1", 4), ("B 2", 4), ("B 4", 4)]


def test_conditions_name_what_sets_a_panel_apart():
    first, second = panels(row(dtype="bf16", heads=16), row(dtype="fp32", heads=1))
    assert (first.conditions, second.conditions) == ("bf16 H 16", "fp32")


def test_a_cache_that_is_the_modes_own_goes_without_saying():
    shown = panels(row(cache="cold"), row(mode="decode", cache="hot"))
    assert [panel.conditions for panel in shown] == ["", ""]


def test_models_stand_in_for_operators():
    (panel,) = panels(row(operator=None, model="based-360m", mode="prefill"))
    assert (panel.title, panel.mode) == ("Based-360m", "prefill")


def test_what_was_changed_in_a_model_is_told_and_its_preset_is_not():
    config = '{"layers": ["conv", "linear"], "preset": "based-360m"}'
    model = row(operator=None, model="based-360m", mode="prefill", heads=None, key_dim=None, value_dim=None)
    assert (
        shared_conditions(pd.DataFrame([model | {"config": config}]))
        == "H200, bf16, B 4, layers conv+linear, cold cache"
    )


def test_shared_conditions():
    rows = timings(pd.DataFrame([row(config='{"window": 64}'), row(config='{"window": 64}', length=2048)]))
    assert shared_conditions(rows) == "H200, bf16, B 4, H 16, K 16, V 64, window 64, cold cache"


def test_a_case_of_several_suites_is_one_point_the_newest_that_has_a_time():
    rows = [row(case_id="a", median_ms=one, suite=suite) for suite, one in (("x", 1.0), ("y", 2.0))]
    rows += [row(case_id="a", suite="z", status="oom"), row(case_id="b", suite="x", length=2048, median_ms=3.0)]
    assert timings(pd.DataFrame(rows), "median_ms")["value"].tolist() == [2.0, 3.0]
    lost = timings(pd.DataFrame([row(case_id="a", suite="x", status="oom")]), "median_ms")
    assert lost["status"].tolist() == ["oom"]


def test_other_numbers_of_threads_are_other_panels():
    found = panels(row(threads=1.0), row(threads=2.0, median_ms=1.0))
    assert [(len(panel.series), panel.conditions) for panel in found] == [(1, "1 thread"), (1, "2 threads")]
    assert [panel.conditions for panel in panels(row(threads=1.0))] == [""]
