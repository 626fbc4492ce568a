"""A throughput suite as typed data."""

from typing import Any

import pytest

from basedbench.config import load_suite, parse_suite, suite_names
from basedbench.config.models import ModelCase
from basedbench.config.throughput import Case, MeasureSection, ThroughputSuite
from basedbench.contenders import get_contender
from basedbench.contenders.language import check_case
from basedbench.errors import UserError

HEAD = "kind: throughput\ncases:\n"
ONE = "  - {{operator: {operator}, contenders: [ours], baseline: {baseline}, grid: {grid}}}\n"


def parsed(operator: str = "taylor_attention", baseline: str = "reference", grid: str = "") -> ThroughputSuite:
    grid = grid or "{length: 8, heads: 1, key_dim: 4, value_dim: 4}"
    suite = parse_suite(HEAD + ONE.format(operator=operator, baseline=baseline, grid=grid), "own", "own.yaml")
    assert isinstance(suite, ThroughputSuite)
    return suite


def test_a_grid_is_every_combination_with_the_operators_options() -> None:
    grid = "{length: [8, 16], window: [4, 8], heads: 1, key_dim: 4, value_dim: 4, mode: [fwd, decode]}"
    cases = parsed("sliding_window", grid=grid).expand("cpu", [("sliding_window", "mine"), ("ssd", "other")])
    assert len(cases) == 2 * 2 * 2 * 2
    assert {case.contender for case in cases} == {"ours", "mine"}
    assert {case.config["window"] for case in cases} == {4, 8}
    assert parsed("ssd").expand("cpu")[0].config == {"groups": 1}
    assert parsed("delta_rule").expand("cpu")[0].config == {"decay": "none"}


def test_several_grids_are_one_after_the_other() -> None:
    grid = (
        "[{length: 8, batch: 2, heads: 1, key_dim: 4, value_dim: 4}, {length: 16, heads: 1, key_dim: 4, value_dim: 4}]"
    )
    assert [(case.batch, case.length) for case in parsed(grid=grid).expand("cpu")] == [(2, 8), (1, 16)]


def test_only_sequences_on_a_gpu_are_timed_cold() -> None:
    suite = parsed(grid="{length: 8, heads: 1, key_dim: 4, value_dim: 4, mode: [fwd, decode]}")
    assert [case.cache for case in suite.expand("cuda")] == ["cold", "hot"]
    assert {case.cache for case in suite.expand("cpu")} == {"hot"}


def test_threads_are_a_cpus_and_part_of_the_meaning() -> None:
    suite = parsed()
    one = suite.model_copy(update={"measure": MeasureSection(threads=1)})
    assert suite.expand("cpu")[0].id != one.expand("cpu")[0].id
    assert suite.expand("cuda")[0].id == one.expand("cuda")[0].id


def test_identity_is_the_meaning_not_the_baseline() -> None:
    case = parsed().expand("cpu")[0]
    assert case.id == case.model_copy(update={"baseline": "sdpa"}).id
    assert case.id == Case.model_validate(dict(reversed(case.model_dump().items()))).id
    for change in ({"contender": "x"}, {"device": "cuda"}, {"cache": "cold"}, {"length": 9}, {"config": {"a": 1}}):
        assert case.model_copy(update=change).id != case.id
    same_problem = {case.model_copy(update=u).problem_id for u in ({"contender": "x"}, {"device": "cuda"}, {})}
    assert len(same_problem) == 1
    assert case.model_copy(update={"dtype": "bf16"}).problem_id not in same_problem


def test_a_baseline_may_be_of_another_operator() -> None:
    assert parsed().expand("cpu")[0].baseline_key == ("taylor_attention", "reference")
    assert parsed(baseline="attention/sdpa-flash").expand("cpu")[0].baseline_key == ("attention", "sdpa-flash")


def test_a_decode_step_makes_one_token_for_each_sequence() -> None:
    case = Case(operator="ssd", contender="ours", length=100, batch=8, baseline="reference", config={"groups": 1})
    assert case.tokens == 800
    assert case.model_copy(update={"mode": "decode"}).tokens == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "taylor_atention"}, r"cases\[0\].operator: no operator .* did you mean 'taylor_attention'"),
        ({"baseline": "atention/ours"}, "no operator is called 'atention'; did you mean 'attention'"),
        ({"grid": "{length: 8, heads: 1, key_dim: 4}"}, "taylor_attention needs value_dim"),
        ({"grid": "{length: 8, heads: 1, key_dim: 4, value_dim: 4, windov: 3}"}, "taylor_attention has no 'windov'"),
        ({"grid": "{length: 0, heads: 1, key_dim: 4, value_dim: 4}"}, "length: .*greater than 0, got 0"),
        (
            {"grid": "{length: 8, heads: 1, key_dim: 4, value_dim: 4, batch: 18446744073709551616}"},
            "batch: .*less than",
        ),
        ({"grid": "{length: 8, heads: 1, key_dim: 4, value_dim: 4, mode: bwd}"}, "mode: .*fwd.*got 'bwd'"),
        (
            {"operator": "ssd", "grid": "{length: 8, heads: 3, key_dim: 4, value_dim: 4, groups: 2}"},
            "2 groups do not div",
        ),
        (
            {"operator": "sliding_window", "grid": "{length: 8, heads: 1, key_dim: 4, value_dim: 4, window: 0}"},
            "window takes whole numbers from 1 to 2147483647, got 0",
        ),
        (
            {"operator": "delta_rule", "grid": "{length: 8, heads: 1, key_dim: 4, value_dim: 4, decay: heads}"},
            "decay is none, head or channel, got 'heads'",
        ),
        (
            {"operator": "short_conv", "grid": "{length: 8, value_dim: 4, activation: relu}"},
            "activation is silu or null",
        ),
        (
            {"operator": "linear_cross_entropy", "grid": "{length: 8, key_dim: 4, value_dim: 4, mode: decode}"},
            "linear_cross_entropy has no decode step",
        ),
    ],
)
def test_bad_suites_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parsed(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["yes", ".inf", "0", ".nan"])
@pytest.mark.parametrize("name", ["round_ms", "seconds", "timeout"])
def test_times_are_finite_numbers(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"measure\.{name}: "):
        parse_suite(
            f"measure: {{{name}: {value}}}\n" + HEAD + ONE.format(operator="ssd", baseline="x", grid="{}"), "a", "a"
        )


def test_measure_must_be_in_order() -> None:
    with pytest.raises(UserError, match="max_rounds 5 is below min_rounds 7"):
        parse_suite("measure: {max_rounds: 5}\n" + HEAD + ONE.format(operator="ssd", baseline="x", grid="{}"), "a", "a")
    more = MeasureSection().at_least(100)
    assert (more.min_rounds, more.max_rounds, more.seconds) == (100, 100, float("inf"))


@pytest.mark.parametrize("name", suite_names("throughput"))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_suites_name_what_exists(name: str, device: str) -> None:
    suite = load_suite(name, "throughput")
    assert suite.description
    cases = suite.expand(device)
    timed = {case.implementation for case in cases}
    for case in cases:
        if isinstance(case, ModelCase):
            check_case(case)
        else:
            assert case.operator in get_contender(case.contender).operators
        assert case.baseline_key in timed


@pytest.mark.parametrize(
    ("name", "device", "first", "last"),
    [("quick-throughput", "cpu", "1250f38b1ff6", "83384fd12558"), ("steady", "cuda", "907c99f48d8f", "275e5ca7ef54")],
)
def test_the_identities_of_stored_rows_stay(name: str, device: str, first: str, last: str) -> None:
    cases = load_suite(name, "throughput").expand(device)
    assert (cases[0].id, cases[-1].id) == (first, last)
