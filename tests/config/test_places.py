"""A key that stands in the wrong section is told which one is right."""

import pytest

from basedbench.config import parse_suite
from basedbench.errors import UserError

RECALL = """
kind: recall
train:
  segments: [{length: 16, pairs: 2, examples: 64}]
  learning_rates: [1e-2]
test:
  segments: [{length: 16, pairs: 2}]
models:
  - {mixer: based, layers: [base_conv, {mixer: based}], grid: {d_model: 16}}
"""
THROUGHPUT = """
kind: throughput
cases: [{operator: ssd, contenders: [ours], baseline: ours, grid: {length: 8, heads: 1, key_dim: 4, value_dim: 4}}]
models: [{presets: [m], baseline: ours, grid: {mode: prefill, length: 8}}]
"""


def said_of(text: str, old: str, new: str) -> str:
    assert old in text
    with pytest.raises(UserError) as caught:
        parse_suite(text.replace(old, new, 1), "mine", "mine.yaml")
    return str(caught.value).removeprefix("mine.yaml: ")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train:", "select: validation\ntrain:", "unknown key 'select'; it belongs under test."),
        ("train:", "segments: []\ntrain:", "unknown key 'segments'; it belongs under train or under test."),
        ("train:", "d_model: 16\ntrain:", "unknown key 'd_model'; it belongs under models.grid."),
        ("train:", "train:\n  select: test", "train: unknown key 'select'; it belongs under test."),
        ("train:", "train:\n  length: 16", "train: unknown key 'length'; it belongs under segments."),
        ("train:", "train:\n  name: own", "train: unknown key 'name'; it belongs at the top of the file."),
        ("mixer: based", "d_model: 16, mixer: based", "models[0]: unknown key 'd_model'; it belongs under grid."),
        ("mixer: based", "seeds: [0], mixer: based", "models[0]: unknown key 'seeds'; it belongs under train."),
        ("mixer: based", "layer: [based], mixer: based", "models[0]: unknown key 'layer'; did you mean 'layers'?"),
        (
            "mixer: based",
            "feature_dim: 16, mixer: based",
            "models[0]: unknown key 'feature_dim'; valid: grid, layers, learning_rates, mixer; options of the mixer "
            "belong under grid.",
        ),
        (
            "mixer: based",
            "options: {feature_dim: 16}, mixer: based",
            "models[0]: unknown key 'options'; it belongs under layers; options of the mixer belong under grid.",
        ),
        (
            "{mixer: based}",
            "{mixer: based, d_model: 16}",
            "models[0].layers[1]: unknown key 'd_model'; it belongs under models.grid.",
        ),
        (
            "{mixer: based}",
            "{mixer: based, feature_dim: 16}",
            "models[0].layers[1]: unknown key 'feature_dim'; valid: mixer, options; options of the mixer belong under "
            "options.",
        ),
    ],
)
def test_of_a_recall_suite(old: str, new: str, said: str) -> None:
    assert said_of(RECALL, old, new) == said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cases:", "seconds: 1\ncases:", "unknown key 'seconds'; it belongs under measure."),
        ("cases:", "batch: 1\ncases:", "unknown key 'batch'; it belongs under cases.grid or under models.grid."),
        ("operator: ssd", "operator: ssd, heads: 1", "cases[0]: unknown key 'heads'; it belongs under grid."),
        ("operator: ssd", "operator: ssd, cache: hot", "cases[0]: unknown key 'cache'; it belongs under measure."),
        ("presets: [m]", "presets: [m], batch: 1", "models[0]: unknown key 'batch'; it belongs under grid."),
        (
            "presets: [m]",
            "presets: [m], heads: 1",
            "models[0]: unknown key 'heads'; valid: baseline, contenders, grid, overrides, presets; options of the "
            "models belong under overrides.",
        ),
    ],
)
def test_of_a_throughput_suite(old: str, new: str, said: str) -> None:
    assert said_of(THROUGHPUT, old, new) == said
