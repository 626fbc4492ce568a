from collections import Counter

import pytest

from basedbench.config import load_suite
from basedbench.errors import UserError
from basedbench.training.cases import recall_cases
from tests.training.conftest import MakeCase, tiny_suite


def test_figure2_is_the_published_recipe() -> None:
    cases = recall_cases(load_suite("figure2"))
    case = cases[0]
    assert case.steps_per_epoch == 707
    assert case.positions_per_epoch == 24_320_000
    assert sum((s.examples or 0) * s.pairs for s in case.train.segments) == 2_800_000
    assert {c.learning_rate for c in cases} == {0.001, 0.00316228, 0.01, 0.0316228}
    models = {c.model_label for c in cases}
    assert len(cases) == 172
    assert len(models) == 43
    assert Counter(c.mixer for c in cases if c.learning_rate == 0.01) == {
        "attention": 2,
        "based": 9,
        "sliding_window": 8,
        "mamba": 9,
        "mamba2": 9,
        "hyena": 3,
        "h3": 3,
    }
    alone = {c.mixer for c in cases if c.layers[0].mixer != "base_conv"}
    assert alone == {c.mixer for c in cases if c.layers[0] == c.layers[1]} == {"mamba", "mamba2", "hyena", "h3"}
    hyena, h3 = (next(c for c in cases if c.mixer == mixer and c.d_model == 128) for mixer in ("hyena", "h3"))
    assert hyena.config == {"filter_order": 64, "emb_dim": 3, "short_filter": 3, "max_length": 1024}
    assert h3.config == {"d_state": 32, "head_dim": 2}
    assert {"based d_model=64 feature_dim=16", "sliding_window d_model=128 window=64"} <= models


def test_identity_is_the_meaning(make_case: MakeCase) -> None:
    base = make_case()
    assert make_case().case_id == base.case_id
    explicit = make_case(
        [{"mixer": "based", "layers": ["base_conv", "based"], "grid": {"feature_dim": 4, "d_model": 16}}]
    )
    assert explicit.case_id == base.case_id
    assert make_case(epochs=3).case_id != base.case_id
    assert make_case(seeds=[1]).case_id != base.case_id
    assert make_case(precision="bf16").case_id != base.case_id


def test_labels_carry_what_the_suite_names(make_case: MakeCase) -> None:
    assert make_case().label == "based d_model=16 feature_dim=4 lr=0.01 seed=0"


def test_layers_of_their_own(make_case: MakeCase) -> None:
    layers = ["base_conv", {"mixer": "sliding_window", "options": {"window": 4}}, "based"]
    case = make_case([{"mixer": "based", "layers": layers, "grid": {"d_model": 16, "feature_dim": 4}}])
    assert [layer.mixer for layer in case.layers] == ["base_conv", "sliding_window", "based"]
    assert case.layers[1].options["window"] == 4
    assert case.config["feature_dim"] == 4
    assert case.layer_options == {"layer2.window": 4}
    assert case.model_label == "based d_model=16 feature_dim=4 layer2.window=4"


def test_layers_as_their_mixers_have_them_by_default_are_not_named(make_case: MakeCase) -> None:
    layers = [{"mixer": "sliding_window", "options": {}}, "based", "based"]
    case = make_case([{"mixer": "based", "layers": layers, "grid": {"d_model": 16, "feature_dim": 4}}])
    assert (case.layer_options, case.layer_options_json) == ({}, None)


def test_a_default_that_a_layer_does_not_spell_out_is_told_from_what_another_has(make_case: MakeCase) -> None:
    """linear_attention leaves its default map out of its options."""
    lower = {"mixer": "linear_attention", "options": {"feature_dim": 4}}
    upper = {"mixer": "linear_attention", "options": {"feature_dim": 4, "feature_map": "relu"}}
    grid = {"d_model": 16, "feature_dim": 4}
    plain = make_case([{"mixer": "linear_attention", "layers": [lower, upper], "grid": {"d_model": 16}}])
    twice = make_case([{"mixer": "linear_attention", "layers": [upper, upper], "grid": {"d_model": 16}}])
    assert (plain.layer_options, twice.layer_options) == ({"layer1.feature_map": "pos_elu"}, {})
    named = make_case(
        [
            {
                "mixer": "linear_attention",
                "layers": ["linear_attention", upper],
                "grid": grid | {"feature_map": "pos_elu"},
            }
        ]
    )
    assert named.config == {"feature_dim": 4, "heads": 1}
    assert named.layer_options == {"layer2.feature_map": "relu"}


def test_the_grid_names_the_model_where_another_layer_of_its_mixer_has_its_own_options(make_case: MakeCase) -> None:
    layers = ["based", {"mixer": "based", "options": {"feature_dim": 2}}]
    case = make_case([{"mixer": "based", "layers": layers, "grid": {"d_model": 16, "feature_dim": 4}}])
    assert case.config["feature_dim"] == 4
    assert case.model_label == "based d_model=16 feature_dim=4 layer2.feature_dim=2"


def test_a_layer_may_be_of_a_mixer_whose_defaults_do_not_fit_the_width(make_case: MakeCase) -> None:
    layers = [{"mixer": "rwkv7", "options": {"head_dim": 4, "decay_rank": 2}}, "based"]
    case = make_case([{"mixer": "based", "layers": layers, "grid": {"d_model": 16, "feature_dim": 4}}])
    assert case.layer_options == {"layer1.head_dim": 4, "layer1.decay_rank": 2}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"mixer": "sliding_window", "grid": {"d_model": 16, "window": 0}}, ["sliding_window", "window", "0"]),
        ({"mixer": "attention", "grid": {"d_model": 16, "heads": 3}}, ["attention", "heads", "3", "16"]),
        ({"mixer": "bsed", "grid": {"d_model": 16}}, ["'bsed'", "'based'"]),
        ({"mixer": "based", "grid": {"d_model": 16, "feature": 3}}, ["'feature'", "feature_dim"]),
        ({"mixer": "based", "grid": {"d_model": "wide"}}, ["d_model"]),
        ({"mixer": "based", "layers": ["base_conv"], "grid": {"d_model": 16}}, ["based", "layers"]),
        ({"mixer": "hyena", "grid": {"d_model": 16, "max_length": 31}}, ["tiny, hyena with", "32 tokens"]),
        (
            {"mixer": "linear_attention", "grid": {"d_model": 16, "feature_map": "cosformer", "max_length": 31}},
            ["tiny, linear_attention with", "32 tokens"],
        ),
        (
            {"mixer": "based", "layers": [{"mixer": "based"}], "grid": {"d_model": 16, "heads": 2}},
            ["tiny, based with", "heads would be of no layer"],
        ),
    ],
)
def test_impossible_models_are_one_sentence(model: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recall_cases(tiny_suite([model]))
    for word in words:
        assert word in str(caught.value)


def test_impossible_segments_name_their_place() -> None:
    with pytest.raises(UserError, match=r"tiny, train.segments\[0\].*length is 16"):
        recall_cases(tiny_suite(segments=[{"length": 16, "pairs": 5, "examples": 4}]))
