"""The `models:` section of a throughput suite."""

from typing import Any

import pytest

from basedbench.config import parse_suite
from basedbench.config.models import MODELS, ModelCase, changes
from basedbench.config.throughput import ThroughputSuite
from basedbench.errors import UserError


def parsed(
    grid: str = "{mode: generation, length: 8}", presets: str = "[based-1.3b]", more: str = ""
) -> ThroughputSuite:
    text = f"kind: throughput\nmodels:\n  - {{presets: {presets}, baseline: ours, grid: {grid}{more}}}\n"
    suite = parse_suite(text, "own", "own.yaml")
    assert isinstance(suite, ThroughputSuite)
    return suite


def test_presets_by_overrides_by_grid() -> None:
    grid = "{mode: [generation, prefill], dtype: bf16, batch: [1, 128], length: {powers_of_two: [512, 1024]}}"
    cases = parsed(grid, "[a, b]", ", overrides: {heads: [1, 2]}").expand("cuda")
    assert len(cases) == len({case.id for case in cases}) == 2 * 2 * 2 * 2 * 2
    assert {case.subject for case in cases} == {"a", "b"}
    assert {case.cache for case in cases if case.mode == "prefill"} == {"cold"}
    assert {case.cache for case in cases if case.mode == "generation"} == {"hot"}


def test_labels_leave_out_what_is_usual() -> None:
    grid = "{mode: generation, dtype: bf16, batch: 128, length: 1024}"
    (usual,) = parsed(grid).expand("cuda")
    assert usual.label == "model/based-1.3b generation bf16 128x1024"
    more = ", contenders: [sdpa-flash], overrides: {window: 64, layers: [[conv, linear]]}"
    (other,) = parsed(grid.replace("generation", "prefill, logits: all"), more=more).expand("cuda")
    assert other.label == "model/based-1.3b prefill bf16 128x1024 layers=conv+linear window=64 logits=all by=sdpa-flash"
    assert other.config == {"preset": "based-1.3b", "window": 64, "layers": ["conv", "linear"], "logits": "all"}
    assert changes(dict(reversed(other.config.items()))) == changes(other.config)


def test_only_a_prefill_has_logits() -> None:
    grid = "{mode: [generation, prefill], length: 8, logits: [last, all]}"
    assert [(case.mode, case.logits) for case in parsed(grid).expand("cpu")] == [
        ("generation", None), ("prefill", "last"), ("prefill", "all")
    ]  # fmt: skip


def test_identity_is_the_meaning_not_the_baseline() -> None:
    (case,) = parsed().expand("cpu")
    assert case.id == case.model_copy(update={"baseline": "attention-1.3b/sdpa-flash"}).id
    for change in ({"contender": "x"}, {"length": 9}, {"overrides": {"heads": 2}}, {"mode": "prefill"}, {"model": "a"}):
        assert case.model_copy(update=change).id != case.id
    assert case.model_copy(update={"contender": "x"}).problem_id == case.problem_id


def test_a_step_makes_one_token_for_each_sequence() -> None:
    case = ModelCase(model="m", contender="ours", mode="prefill", batch=4, length=10, baseline="ours")
    assert case.tokens == 40
    assert case.model_copy(update={"mode": "generation"}).tokens == 4


def test_contenders_may_be_added_to_models_alone() -> None:
    cases = parsed().expand("cpu", [(MODELS, "sdpa-math"), ("attention", "flex")])
    assert [case.contender for case in cases] == ["ours", "sdpa-math"]


def test_operators_and_models_stand_side_by_side() -> None:
    text = (
        "kind: throughput\n"
        "cases:\n  - {operator: ssd, contenders: [ours], baseline: ours, "
        "grid: {length: 8, heads: 1, key_dim: 4, value_dim: 4}}\n"
        "models:\n  - {presets: [m], baseline: ours, grid: {mode: prefill, length: 8}}\n"
    )
    cases = parse_suite(text, "own", "own.yaml").expand("cpu")
    assert [case.label.split()[0] for case in cases] == ["ssd/ours", "model/m"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": "{mode: generation, lenght: 8}"}, "models have no 'lenght'; did you mean 'length'"),
        ({"grid": "{mode: generation}"}, "models need length; add e.g. length: 1024"),
        ({"grid": "{length: 8}"}, "models need mode; add e.g. mode: generation"),
        ({"grid": "{mode: decode, length: 8}"}, "mode: .*generation.*got 'decode'"),
        ({"grid": "{mode: prefill, length: 8, logits: first}"}, "logits: .*last.*got 'first'"),
        ({"grid": "{mode: prefill, length: 0}"}, "length: .*greater than 0, got 0"),
        ({"more": ", preset: x"}, r"models\[0\].*unknown key 'preset'; did you mean 'presets'"),
        ({"presets": "[]"}, r"models\[0\].presets"),
    ],
)
def test_bad_sections_are_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parsed(**arguments)
    assert "\n" not in str(caught.value)


def test_a_suite_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="has cases, models or both"):
        parse_suite("kind: throughput\n", "own", "own.yaml")
