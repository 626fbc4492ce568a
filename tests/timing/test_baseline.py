"""Which row a ratio is taken of."""

import json
from typing import Any

from basedbench.timing.baseline import counterpart, speed_up
from tests.timing.conftest import make_case


def row(contender: str, milliseconds: float | None, baseline: str = "attention/sdpa", **changes: Any) -> dict[str, Any]:
    case = make_case(contender, baseline=baseline, **changes)
    return case.model_dump() | {
        "suite": "own",
        "device_name": "A",
        "threads": 1,
        "median_ms": milliseconds,
        "baseline": "/".join(case.baseline_key),
        "config": json.dumps(case.config),
    }


def test_a_baseline_of_another_operator_may_have_another_key_width() -> None:
    attention = row("sdpa", 6.0, operator="attention", key_dim=64)
    others = [row("sdpa", 1.0, operator="attention", key_dim=64, **one) for one in ({"length": 25}, {"value_dim": 7})]
    assert speed_up(row("ours", 2.0), [*others, attention]) == 3.0
    assert speed_up(row("ours", 2.0), others) is None


def test_of_several_key_widths_of_another_operator_the_nearest_counts() -> None:
    """Whichever was timed first: rows are oldest first, and one that was timed again moves to the end."""
    narrow, alike, wide = (row("sdpa", 2.0 * key, operator="attention", key_dim=key) for key in (2, 4, 9))
    for order in ([narrow, alike, wide], [wide, alike, narrow], [alike, wide, narrow]):
        assert counterpart(row("ours", 2.0), "attention/sdpa", order) is alike
    assert counterpart(row("ours", 2.0, key_dim=8), "attention/sdpa", [narrow, wide, alike]) is wide


def test_of_several_options_of_another_operator_those_that_agree_count_then_the_newest_row() -> None:
    rows = [row("sdpa", 1.0, operator="sliding_window", config={"window": width}) for width in (8, 64, 32)]
    like = row("ours", 1.0, operator="attention", config={"window": 8})
    assert counterpart(like, "sliding_window/sdpa", rows) is rows[0]
    assert counterpart(like | {"config": "{}"}, "sliding_window/sdpa", rows) is rows[2]


def test_one_of_the_same_operator_has_the_same_shape_and_options() -> None:
    wide = row("reference", 9.0, "reference", key_dim=8)
    assert speed_up(row("ours", 3.0, "reference"), [wide]) is None
    assert speed_up(row("ours", 3.0, "reference", key_dim=8), [wide]) == 3.0


def test_a_baseline_has_as_many_threads() -> None:
    one, two = row("reference", 9.0, "reference"), row("reference", 6.0, "reference") | {"threads": 2}
    assert speed_up(row("ours", 3.0, "reference") | {"threads": 2}, [one, two]) == 2.0


def test_no_time_is_no_ratio() -> None:
    failed = row("reference", None, "reference")
    assert counterpart(row("ours", 1.0, "reference"), "reference", [failed]) is failed
    assert speed_up(row("ours", 1.0, "reference"), [failed]) is None
    assert speed_up(failed, [row("reference", 1.0, "reference")]) is None
