import math

import pandas as pd
import pytest

from basedbench.analysis.decoding import with_decode_rate
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
    return row | {"batch": 1, "tokens_per_s": 10.0} | changes


def test_the_rate_of_the_same_model_at_the_largest_batch() -> None:
    rows = [timed(), timed(batch=64, tokens_per_s=500.0), timed(config="{}", batch=128, tokens_per_s=1.0)]
    rates = with_decode_rate(RECALL, pd.DataFrame([*rows, timed(model=None, batch=256)]))["decode_tokens_per_s"]
    assert rates[0] == 500
    assert math.isnan(rates[1])


@pytest.mark.parametrize("change", [{"status": "incorrect"}, {"mode": "fwd"}, {"config": "{}"}])
def test_without_times_it_says_what_to_run(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="basedbench throughput --models s"):
        with_decode_rate(RECALL, pd.DataFrame([timed(**change)]))
