"""The suite of feature maps: how many models, how large their states are, and what it shares with figure2."""

from collections import Counter

import torch

from basedbench.config import load_suite
from basedbench.models import RecallModel, state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.training.cases import RecallCase, recall_cases
from basedbench.training.rows import Circumstances, recall_row
from tests.training.conftest import tiny_suite, trained

WIDTHS = range(64, 513, 64)
MAPS = ("pos_elu", "identity", "relu", "square", "cosformer", "performer", "all_poly")


def cases(rate: float = 0.01) -> dict[tuple[str, int, int], RecallCase]:
    """By map (or `based`), width and feature dimension, at one learning rate."""
    found = [case for case in recall_cases(load_suite("figure3", "recall")) if case.learning_rate == rate]
    return {
        (str(dict(case.named).get("feature_map", "based")), case.d_model, feature_dim(case)): case for case in found
    }


def feature_dim(case: RecallCase) -> int:
    return int(case.config["feature_dim"])


def weighed(case: RecallCase) -> RecallModel:
    """The model without its numbers."""
    with torch.device("meta"):
        return RecallModel(case.task.vocab_size, case.d_model, case.layers)


def test_nine_maps_at_eight_widths_and_four_learning_rates() -> None:
    every = recall_cases(load_suite("figure3"))
    assert len(every) == len({case.case_id for case in every}) == 4 * 9 * 8
    assert set(Counter(case.learning_rate for case in every).values()) == {72}
    expected = {("based", width, features) for width in WIDTHS for features in (16, 24)}
    expected |= {(name, width, width) for name in MAPS for width in WIDTHS}
    assert cases().keys() == expected
    assert {case.layer_mixers for case in every} == {"base_conv+based", "base_conv+linear_attention"}


def test_the_recipe_is_that_of_figure2_and_shared_runs_are_the_same_runs() -> None:
    two, three = load_suite("figure2"), load_suite("figure3")
    assert (two.task, two.train, two.test) == (three.task, three.train, three.test)
    shared = {case.case_id for case in recall_cases(two)} & {case.case_id for case in recall_cases(three)}
    assert len(shared) == 4 * 4  # based at d 64 and 128, f 16 and 24


def test_state_sizes() -> None:
    for (name, width, features), case in cases().items():
        rows = {"cosformer": 2 * width, "performer": 256, "based": (features + 1) * (features + 2) // 2}
        published = rows | {"performer": width}  # as zoology has it
        model = weighed(case)
        size = 4 * rows.get(name, width) * (width + 1)
        position = 4 if name == "cosformer" else 0
        assert state_bytes(model, case.longest) == size + position + 4 * 2 * width  # a BaseConv's two inputs
        assert state_bytes_paper(model) == 4 * published.get(name, width) * (width + 1)
        assert state_bytes_zoology(model) == state_bytes_paper(model) + 4 * 3 * width


def test_the_default_map_named_or_not_is_the_same_run() -> None:
    """Rows from before there were maps stay rows of these cases."""
    sections = [
        {"mixer": "linear_attention", "grid": {"d_model": 16} | more} for more in ({}, {"feature_map": "pos_elu"})
    ]
    plain, named = (recall_cases(tiny_suite([section]))[0] for section in sections)
    assert plain.case_id == named.case_id
    assert plain.config_json == '{"feature_dim": 16, "heads": 1}'
    assert (plain.model_label, named.model_label) == (
        "linear_attention d_model=16",
        "linear_attention d_model=16 feature_map=pos_elu",
    )


def test_every_map_trains_to_a_row_of_its_own_family() -> None:
    for name in (*MAPS, "hedgehog", "taylor1", "taylor2", "taylor3"):
        grid = {"d_model": 16, "feature_dim": 4, "feature_map": name}
        run = trained(recall_cases(tiny_suite([{"mixer": "linear_attention", "grid": grid}]))[0])
        assert run.progress.status == "ok"
        family = recall_row(run.case, run.progress, Circumstances("cpu"))["family"]
        assert family == ("linear_attention" if name == "pos_elu" else f"linear_attention/{name}")
        assert all(parameter.isfinite().all() for parameter in run.model.parameters())
