import os
import re
from pathlib import Path

import pytest

from basedbench.config import RecallSuite, load_suite, parse_suite, plain_yaml, suite_names
from basedbench.errors import UserError
from basedbench.training.cases import recall_cases

VALID = """
kind: recall
train:
  segments: [{length: 16, pairs: 2, examples: 64}]
  learning_rates: [1e-2]
test:
  segments: [{length: 16, pairs: 2}]
models:
  - {mixer: based, grid: {d_model: 16}}
"""


def parse(text: str) -> RecallSuite:
    suite = parse_suite(text, "mine", "mine.yaml")
    assert isinstance(suite, RecallSuite)
    return suite


@pytest.mark.parametrize("text", ["1_6", "07", "-01", "00", "0x10", "1e-2", "'010'"])
def test_numbers_that_are_what_they_say_are_taken(text: str) -> None:
    plain_yaml.read(f"x: {text}")


def test_a_suite_is_named_by_its_file_and_has_the_paper_recipe_by_default() -> None:
    suite = parse(VALID)
    assert (suite.name, suite.train.batch_size, suite.train.epochs, suite.train.weight_decay) == ("mine", 256, 32, 0.1)
    assert suite.train.learning_rates == [0.01]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("learning_rates", "lerning_rates", ["train", "'lerning_rates'", "'learning_rates'"]),
        ("pairs: 2, examples", "paris: 2, examples", ["train.segments[0]", "'paris'", "'pairs'"]),
        ("kind: recall", "kind: recal", ["kind", "recall", "throughput"]),
        (", examples: 64", "", ["train.segments", "16x2", "examples"]),
        ("[1e-2]", "[-1.0]", ["train.learning_rates", "-1.0"]),
        ("[1e-2]", "[]", ["train.learning_rates", "empty"]),
        ("[1e-2]", "[1e-19]", ["train.learning_rates", "1e-18", "1e-19"]),  # readers would leave its rows out
        ("{d_model: 16}", "{width: 16}", ["models[0].grid", "d_model"]),
        (
            "length: 16, pairs: 2, examples: 64",
            "length: x, pairs: 2, examples: 64",
            ["train.segments[0].length", "'x'"],
        ),
        ("[1e-2]", "[1e-2]\n  learning_rates: [1e-3]", ["line", "'learning_rates' stands twice"]),
        ("pairs: 2, examples", "pairs: 2, pairs: 4, examples", ["line", "'pairs' stands twice"]),
        ("length: 16, pairs", "length: 020, pairs", ["mine.yaml, line 4: ", "'020' would be 16", "write 16 or 20."]),
        ("length: 16, pairs", "length: 1:30, pairs", ["'1:30' would be 90", "a colon means base 60"]),
        ("kind: recall", "kind: recall\nname: " + "[" * 5000, ["nested too deep"]),
        ("[1e-2]", f"[1e-2]\n  epochs: {2**31}", ["train.epochs", "less than"]),
        ("kind: recall", "kind: recall\nname: ''", ["name: takes text that is not empty"]),
        ("mixer: based", "mixer: [based", ["line", "not valid YAML"]),
        ("mixer: based", "mixer: based, layers: [{based: {}}]", ["models[0].layers[0]: unknown key 'based'", "mixer"]),
        ("mixer: based", "mixer: based, layers: [[a]]", ['models[0].layers[0]: takes text, got ["a"]']),
        ("kind: recall", "kind: recall\ndescription: !!set [1]", ["line", "mapping"]),
        ("mixer: based", "mixer: !!map x", ["line", "mapping"]),
        ("mixer: based", "mixer: !!map [1]", ["line", "mapping"]),
        ("[1e-2]", "fast", ["train.learning_rates[0]: takes a number, got 'fast'"]),
        ("[1e-2]", "[1e-2]\n  epochs: yes", ["train.epochs", "true is no number"]),
        ("[1e-2]", "[1e-2]\n  batch_size: x", ["train.batch_size: takes a whole number, got 'x'"]),
        ("  - {mixer: based, grid: {d_model: 16}}", "  - based", ["models[0]: takes a mapping, got 'based'"]),
        ("  learning_rates: [1e-2]\n", "", ["train.learning_rates: is missing"]),
        ("segments: [{length: 16, pairs: 2}]", "segments: [{length: 16, pairs: 2}, {length: 16, pairs: 2}]", ["twice"]),
        ("{d_model: 16}", f"{{d_model: 16, a: {list(range(1000))}, b: {list(range(1000))}}}", ["1,000,000 comb"]),
    ],
)
def test_one_sentence_says_what_is_wrong_and_where(old: str, new: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(VALID.replace(old, new))
    message = str(caught.value)
    assert "mine.yaml" in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_family_can_have_learning_rates_of_its_own() -> None:
    assert parse(VALID).models[0].learning_rates is None
    own = parse(VALID.replace("grid: {d_model: 16}", "grid: {d_model: 16}, learning_rates: {logspace: [-3, -2, 2]}"))
    assert own.models[0].learning_rates == [0.001, 0.01]
    assert RecallSuite.model_validate(own.model_dump()) == own
    with pytest.raises(UserError, match=r"models\[0\]\.learning_rates.*between 0 and 10"):
        parse(VALID.replace("grid: {d_model: 16}", "grid: {d_model: 16}, learning_rates: [20]"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_what_is_not_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="mapping"):
        parse_suite(text, "mine", "mine.yaml")


def test_yaml_cannot_name_python_objects() -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        parse(VALID + "\ndescription: !!python/object/apply:os.getcwd []\n")


@pytest.mark.parametrize(
    ("scalar", "said"),
    [
        ("!!int abc", "'abc' cannot be read as a whole number"),
        ("!!int ''", "'' cannot be read as a whole number"),
        ("1" * 6000, "1... cannot be read as a whole number"),
        ("!!bool perhaps", "'perhaps' cannot be read as a truth value"),
        ("!!timestamp soon", "'soon' cannot be read as a date"),
        ('"\\ud800"', "cannot be read as text"),
    ],
    ids=["letters", "nothing", "too many digits", "perhaps", "soon", "half of a character"],
)
def test_scalars_that_python_or_rows_cannot_hold_are_refused(scalar: str, said: str) -> None:
    with pytest.raises(UserError, match=f"mine.yaml, line 10: not valid YAML: .*{said}"):
        parse(f"{VALID}description: {scalar}\n")


def test_dates_are_text() -> None:
    assert parse(f"{VALID}description: 2020-99-99\n").description == "2020-99-99"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: recall", "kind:", "kind: got null; valid"),
        ("kind: recall", "", "kind: is missing; valid"),
        ("[1e-2]", "true", "train.learning_rates[0]: true is no number"),
        ("[1e-2]", "[1e-2]\n  seeds: [0, yes]", "train.seeds[1]: true is no number"),
        ("[1e-2]", "[1e-2]\n  weight_decay: true", "train.weight_decay: true is no number"),
        ("[1e-2]", "{logspace: [-3, -1]}", "train.learning_rates: logspace takes"),
        ("kind: recall", "kind: recall\ntask: [yes, {a: }]", 'task: takes a mapping, got [true, {"a": null}]'),
        ("[1e-2]", "[1e-2]\n  epochs: 2020-01-01", "train.epochs: takes a whole number, got '2020-01-01'"),
        ("[1e-2]", f"[1e-2]\n  epochs: {'x' * 500}", f"train.epochs: takes a whole number, got '{'x' * 99}..."),
        ("{d_model: 16}", "{d_model: }", "based with d_model=null: d_model takes"),
        ("{d_model: 16}", "{d_model: 16, heads: }", "option 'heads' = null: takes a whole number"),
        ("{d_model: 16}", "&own [*own]", "models[0].grid: takes a mapping, got [[...]]"),
    ],
)
def test_values_are_shown_as_they_were_written(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recall_cases(parse(VALID.replace(old, new)))
    assert said in str(caught.value)


def test_a_grid_of_no_kind_is_named_by_its_place() -> None:
    text = "kind: throughput\ncases: [{operator: wkv4, contenders: [ours], baseline: ours, grid: }]"
    with pytest.raises(UserError, match=re.escape("cases[0].grid: takes a mapping, got null")):
        parse_suite(text, "mine", "mine.yaml")


def test_a_second_document_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"line .*a suite is one document"):
        parse(f"{VALID}\n---\nkind: recall\n")


def test_an_endless_weight_decay_is_refused() -> None:
    with pytest.raises(UserError, match="weight_decay"):
        parse(VALID.replace("train:", "train:\n  weight_decay: .inf"))


def test_a_suite_that_extends_itself_by_another_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "own.yaml").write_text("extends: a/../own.yaml")
    with pytest.raises(UserError, match="in turn"):
        load_suite(str(tmp_path / "own.yaml"))


def test_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(VALID)
    assert load_suite(str(path)).name == "own"
    with pytest.raises(UserError, match="cannot read the suite file"):
        load_suite(str(tmp_path / "none.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="no ordinary file"):
        load_suite(str(tmp_path / "pipe.yaml"))
    with pytest.raises(UserError, match="did you mean 'figure2'"):
        load_suite("figure_2")
    with pytest.raises(UserError, match="is a recall suite"):
        load_suite("figure2", "throughput")


def test_every_shipped_suite_loads() -> None:
    names = suite_names()
    assert {"quick", "figure2"} <= set(names)
    assert all(load_suite(name).name == name for name in names)
    assert "figure2" in suite_names("recall")
    assert "figure2" not in suite_names("throughput")


def test_a_suite_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(VALID)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: base.yaml\ndescription: more seeds\ntrain: {seeds: [0, 1]}\n"
        "add_models:\n  - {mixer: attention, grid: {d_model: 16}}\n"
    )
    base, suite = load_suite(str(tmp_path / "base.yaml")), load_suite(str(path))
    assert (suite.name, suite.description, suite.train.seeds) == ("mine", "more seeds", [0, 1])
    assert suite.train.segments == base.train.segments
    assert [section.mixer for section in suite.models] == ["based", "attention"]
    path.write_text("extends: base.yaml\nmodels:\n  - {mixer: attention, grid: {d_model: 16}}\n")
    assert [section.mixer for section in load_suite(str(path)).models] == ["attention"]


def test_a_shipped_suite_can_be_extended_by_name() -> None:
    suite = parse("extends: quick\ntrain: {epochs: 2}\n")
    quick = load_suite("quick")
    assert suite.train == quick.train.model_copy(update={"epochs": 2})
    assert suite.models == quick.models


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: qiuck", ["'quick'"]),
        ("extends: absent.yaml", ["absent.yaml"]),
        ("extends: 3", ["mine.yaml", "3"]),
        ("extends: quick\nadd_models: based", ["mine.yaml", "add_models", "'based'"]),
        ("extends: quick\ntrain: {epoch: 2}", ["mine.yaml", "'epoch'", "'epochs'"]),
        ("add_models: []", ["mine.yaml: add_models: goes with `extends: SUITE`"]),
        ("extends: quick\n1: 2", ["mine.yaml", "unknown key '1'"]),
    ],
)
def test_what_cannot_be_extended_is_said_in_one_sentence(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert all(word in str(caught.value) for word in words)


def test_suites_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}.yaml\n")
    with pytest.raises(UserError, match="in turn"):
        load_suite(str(tmp_path / "a.yaml"))


def test_a_merged_key_may_be_overridden() -> None:
    text = VALID.replace("{mixer: based, grid: {d_model: 16}}", "{mixer: based, grid: &own {d_model: 16, heads: 1}}")
    text += "  - {mixer: based, grid: {<<: *own, heads: 2}}\n"
    assert parse(text).models[1].grid == {"d_model": 16, "heads": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: recall\ntask:\n  vocab_size: 64\n train: {}\n", 4),
        ("kind: recall\n task: {}\n", 2),
        ("kind: recall\r\ntrain:\r\n  epochs: 1\r\n    # more\r\n    batch_size: 2\r\n", 5),
        ("models:\n  - mixer: based\n    grid: {d_model: 64}\n   layers: [based]\n", 4),
        ("models:\n  - mixer: based\n     grid: {d_model: 64}\n", 3),
        ("models:\n  - mixer: based\n - mixer: mamba\n", 3),
        (" kind: recall\ntask: {}\n", 2),
        ("models:\n\t- mixer: based\n", 2),
        ("task:\n  vocab_size: 64\n\tpower_a: 1\n", 3),
    ],
)
def test_what_is_wrong_about_the_indentation_is_called_that(text: str, line: int) -> None:
    with pytest.raises(UserError, match=f"mine.yaml, line {line}: not valid YAML: wrong indentation: "):
        parse_suite(text, "mine", "mine.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "kind: recall\ndescription: a: b\n",
        'kind: recall\ndescription: "x" y\n',
        "kind recall\ntask: {}\n",
        "models: [a, b\ntask: {}\n",
        "task: a\tb: c\n",
    ],
)
def test_other_mistakes_are_not_called_indentation(text: str) -> None:
    with pytest.raises(UserError, match=r"not valid YAML: (?!wrong indentation)"):
        parse_suite(text, "mine", "mine.yaml")
