"""Suites made from figure2: what they run, and which runs are the same."""

from collections import Counter

from basedbench.cli.recall_input import choose_suite
from basedbench.config import load_suite
from basedbench.training.cases import RecallCase, recall_cases


def parity(precision: str | None) -> list[RecallCase]:
    return recall_cases(choose_suite("parity", ["cuda"], lr=None, seed=None, epochs=None, precision=precision))


def test_parity_is_four_models_at_four_rates_and_three_seeds() -> None:
    cases = parity(None)
    assert Counter(case.model_label for case in cases) == {
        "based d_model=64 feature_dim=16": 12,
        "mamba2 d_model=64 d_state=16": 12,
        "attention d_model=64": 12,
        "mamba d_model=128 d_state=24": 12,
    }
    figure2 = {case.case_id for case in recall_cases(load_suite("figure2"))}
    assert {case.case_id for case in cases if case.seed == 0} < figure2


def test_every_precision_has_cases_of_its_own() -> None:
    ids = [{case.case_id for case in parity(precision)} for precision in ("fp32", "tf32", "bf16")]
    assert len(set.union(*ids)) == 3 * 48
    assert {case.case_id for case in parity(None)} == ids[0]


def test_dense_has_the_models_of_figure2_at_ten_rates() -> None:
    dense, sparse = recall_cases(load_suite("figure2-dense")), recall_cases(load_suite("figure2"))
    assert len(dense) == 43 * 10 * 3
    assert {case.model_label for case in dense} == {case.model_label for case in sparse}
    rates = sorted({case.learning_rate for case in dense})
    assert len(rates) == 10
    assert {case.learning_rate for case in sparse} < set(rates)
    assert rates[0] < 0.001 < 0.0316228 < rates[-1]
    assert {case.test.select for case in dense} == {"validation"}
    assert {case.seed for case in dense} == {0, 1, 2}
