import math

import pandas as pd
import pytest

from basedbench.analysis.decoding import decoding_note, with_decode_rate
from basedbench.errors import UserError

RECALL = pd.DataFrame(
    {
        "suite": ["s", "s"],
        "layer_mixers": ["base_conv+based", "mamba+mamba"],
        "d_model": [64, 64],
        "config": ['{"feature_dim": 8}', '{"d_state": 8}'],
    }
)


def timed(**changes: object) -> dict[str, object]:
    row = {"model": "base_conv+based d_model=64", "config": '{"feature_dim": 8}', "mode": "decode", "status": "ok"}
    row |= {"suite": "s", "batch": 1, "length": 64, "dtype": "fp32", "device_name": "X", "tokens_per_s": 10.0}
    row |= {"parameters": None, "contender_version": None}
    return row | {"median_ms": 2.0, "ci_low_ms": 1.6, "ci_high_ms": 2.5} | changes


def test_the_rate_of_the_same_model_at_the_largest_batch() -> None:
    rows = [timed(), timed(batch=64, tokens_per_s=500.0), timed(config="{}", batch=128, tokens_per_s=1.0)]
    rates = with_decode_rate(RECALL, pd.DataFrame([*rows, timed(model=None, batch=256)]))["decode_tokens_per_s"]
    assert rates[0] == 500
    assert math.isnan(rates[1])


def test_the_rate_is_that_of_its_own_suite_where_that_was_timed() -> None:
    rows = [timed(tokens_per_s=7.0), timed(suite="other", tokens_per_s=1.0, length=9)]
    for order in (rows, rows[::-1]):
        own = with_decode_rate(RECALL, pd.DataFrame(order))
        assert (own["decode_tokens_per_s"][0], own["decode_length"][0]) == (7, 64)
    assert with_decode_rate(RECALL, pd.DataFrame(rows[1:]))["decode_tokens_per_s"][0] == 1


def test_a_model_with_another_vocabulary_is_another_model() -> None:
    recall = RECALL.assign(parameters=[100.0, 50.0])
    rows = [timed(suite="t", tokens_per_s=7.0), timed(suite="u", tokens_per_s=1.0, parameters=100)]
    small = timed(suite="v", tokens_per_s=9.0, parameters=10)
    for own in (rows[:1], rows):  # older rows do not say how many they have
        rates = with_decode_rate(recall, pd.DataFrame([*own, small]))["decode_tokens_per_s"]
        assert rates[0] == own[-1]["tokens_per_s"]
    with pytest.raises(UserError, match="no decode times of these models"):
        with_decode_rate(recall, pd.DataFrame([small]))


def test_models_that_differ_in_another_layer_have_rates_of_their_own() -> None:
    recall = RECALL.assign(layer_mixers="a+based", config="{}", layer_options=[None, '{"layer1.window": 4}'])
    names = ("a+based d_model=64", "a+based d_model=64 layer1.window=4")
    rows = [timed(model=name, config="{}", tokens_per_s=rate) for name, rate in zip(names, (1.0, 2.0), strict=True)]
    assert list(with_decode_rate(recall, pd.DataFrame(rows))["decode_tokens_per_s"]) == [1, 2]


@pytest.mark.parametrize("change", [{"status": "incorrect"}, {"mode": "fwd"}, {"config": "{}"}])
def test_without_times_it_says_what_to_run(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="basedbench throughput --models s"):
        with_decode_rate(RECALL, pd.DataFrame([timed(**change)]))


def test_the_interval_of_the_rate_is_that_of_the_time() -> None:
    rows = pd.DataFrame([timed(), timed(batch=64, ci_low_ms=-1.0)])
    one, many = (with_decode_rate(RECALL, rows, batch).iloc[0] for batch in (1, 64))
    assert (one["decode_tokens_per_s_low"], one["decode_tokens_per_s_high"]) == (8.0, 12.5)
    assert math.isnan(many["decode_tokens_per_s_high"])  # an end below no time at all
    assert (one["decode_batch"], many["decode_batch"]) == (1, 64)


def test_a_batch_that_was_not_timed_is_refused_with_those_that_were() -> None:
    with pytest.raises(UserError, match="at batch 8, only at 1, 64"):
        with_decode_rate(RECALL, pd.DataFrame([timed(), timed(batch=64)]), 8)


def test_the_note_says_how_the_models_were_decoded() -> None:
    rows = pd.DataFrame([timed(), timed(batch=64, length=1024)])
    note = decoding_note(with_decode_rate(RECALL, rows))
    assert note == "Decoded on X, batch 64, behind 1,024 tokens, fp32; level bars: 95% intervals."
