"""Rows of an edited file are told from those of the file as it is."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from basedbench import plugins, sources
from basedbench.contenders import get_contender
from basedbench.contenders import registry as contenders
from basedbench.mixers import get_mixer
from basedbench.mixers import registry as mixers
from basedbench.sources import plugin_options, source_of, versions_note
from basedbench.store import load
from tests.cli.conftest import RunCli, calibrated, out, run_cli

__all__ = ["calibrated", "out", "run_cli"]

OWN = """
from basedbench.contenders import contender
from basedbench.kernels import taylor_attention
from basedbench.mixers import register
from basedbench.mixers.based import Based


@register
class Mine(Based):
    name = "mine"


@contender("taylor_attention", name="own")
def own(q, k, v):
    return taylor_attention(q, k, v)
"""
RECALL = """
kind: recall
task: {vocab_size: 64}
train: {segments: [{length: 16, pairs: 2, examples: 32}], batch_size: 16, epochs: 1, learning_rates: [0.01]}
test: {segments: [{length: 16, pairs: 2}], examples: 20}
models: [{mixer: mine, grid: {d_model: 16, feature_dim: 2}}, {mixer: based, grid: {d_model: 16, feature_dim: 2}}]
"""
TIMES = """
kind: throughput
measure: {seconds: 0.1, min_rounds: 3, max_rounds: 4, round_ms: 1, timeout: 60, threads: 1}
cases:
  - operator: taylor_attention
    contenders: [ours]
    baseline: ours
    grid: {mode: fwd, dtype: fp32, batch: 1, length: 8, heads: 2, key_dim: 4, value_dim: 8}
"""


@pytest.fixture
def plugin(tmp_path: Path, own_registries: None) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def edit(plugin: Path) -> None:
    """Change the file, and forget it as a new process would not know it."""
    plugin.write_text(f"{plugin.read_text()}\n# another line\n")
    plugins._loaded.clear()
    mixers._mixers.pop("mine")
    contenders._REGISTERED.pop("own")


def test_a_source_is_that_of_the_user_s_own(plugin: Path) -> None:
    plugins.load_plugin(plugin)
    first = source_of(get_mixer("mine"))
    assert first is not None
    assert first.startswith("own.py ")
    assert get_contender("own").version == first
    assert source_of(get_mixer("based")) is None
    plugin.write_text("")
    assert source_of(get_mixer("mine")) == first  # what runs is what was loaded


def test_recall_tells_of_rows_of_an_edited_mixer(plugin: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "mine.yaml").write_text(RECALL)
    arguments = ["recall", "--sweep", "--suite", tmp_path / "mine.yaml", "--plugin", plugin, "--device", "cpu"]
    arguments += ["--jobs", 1, "--out", tmp_path / "results"]
    assert "another version" not in run_cli(*arguments).stderr
    assert "another version" not in run_cli(*arguments).stderr
    edit(plugin)
    told = run_cli(*arguments).stderr
    assert "1 run has a row of another version of your file (mine d_model=16 feature_dim=2 lr=0.01 seed=0)" in told
    assert "--retry outdated runs it again" in told
    files = set((tmp_path / "results" / "recall").iterdir())
    assert "another version" not in run_cli(*arguments, "--retry", "outdated").stderr
    assert len(set((tmp_path / "results" / "recall").iterdir()) - files) == 1  # the other run is not of this file
    assert "another version" not in run_cli(*arguments).stderr
    sources = load(tmp_path / "results", "recall").set_index("mixer")["mixer_source"]
    assert not isinstance(sources["based"], str)
    assert sources["mine"].startswith("own.py ")


def test_lists_of_runs_tell_of_several_versions(plugin: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """In the words of figures and `compare`; where the rows shown are of one version there is nothing to tell."""
    suite, results = tmp_path / "mine.yaml", tmp_path / "results"
    suite.write_text(RECALL)
    common = ["--suite", suite, "--plugin", plugin]
    arguments = ["recall", "--sweep", *common, "--device", "cpu", "--jobs", 1, "--out", results]
    lists = (
        [*arguments, "--seed", "0,1", "--dry-run"],
        ["list", "runs", "--results", results],
        ["results", "status", *common, "--results", results],
    )
    run_cli(*arguments)
    assert not any("versions" in run_cli(*command).output for command in lists)
    edit(plugin)
    suite.write_text(RECALL.replace("epochs: 1", "epochs: 1, seeds: [0, 1]"))
    assert "1 run has a row of another version of your file" in run_cli(*lists[0]).stderr  # as when it is run
    run_cli(*arguments)
    (one, other) = load(results, "recall")["mixer_source"].dropna().unique()
    told = f"Rows of 2 versions of own.py ({one[-8:]}, {other[-8:]}) are among these. --retry outdated takes the older "
    for command in lists:
        assert told in " ".join(run_cli(*command).stdout.split())
    for command in lists[:2]:
        outcome = run_cli(*command, "--json")
        assert json.loads(outcome.stdout)
        assert told in " ".join(outcome.stderr.split())
    (status,) = json.loads(run_cli(*lists[2], "--json").stdout)["suites"]
    assert status["versions"].startswith(told)
    assert "versions" not in run_cli("list", "runs", "--results", results, "--limit", 1).output
    assert "versions" not in run_cli(*lists[0], "--fresh").output
    run_cli(*arguments, "--fresh")
    assert not any("versions" in run_cli(*command).output for command in lists)


def test_throughput_tells_of_rows_of_an_edited_contender(
    plugin: Path, tmp_path: Path, run_cli: RunCli, out: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(TIMES)
    arguments = ["throughput", "--suite", tmp_path / "mine.yaml", "--plugin", plugin, "--device", "cpu", "--out", out]
    assert "another version" not in run_cli(*arguments).stderr
    edit(plugin)
    assert "1 case has a row of another version of your file (taylor_attention/own" in run_cli(*arguments).stderr
    planned = run_cli(*arguments, "--dry-run", "--json")
    assert [case["due"] for case in json.loads(planned.stdout)] == [False, False]
    files = set((out / "throughput").iterdir())
    assert "another version" not in run_cli(*arguments, "--retry", "outdated").stderr
    assert len(set((out / "throughput").iterdir()) - files) == 1  # the other case is not of this file
    assert "another version" not in run_cli(*arguments).stderr


def test_rows_of_decode_steps_name_the_file(plugin: Path, tmp_path: Path, run_cli: RunCli) -> None:
    suite, out = tmp_path / "mine.yaml", tmp_path / "results"
    suite.write_text(RECALL)
    arguments = ["--models", suite, "--plugin", plugin, "--device", "cpu", "--rounds", 3, "--batch", 2, "--out", out]
    assert run_cli("throughput", *arguments).exit_code == 0
    rows = load(out, "throughput").set_index("model")
    assert rows.loc["base_conv+mine d_model=16", "contender_version"].startswith("own.py ")
    assert not isinstance(rows.loc["base_conv+based d_model=16", "contender_version"], str)
    assert set(rows["vocab_size"]) == {64}
    assert set(rows["threads"]) == {torch.get_num_threads()}


def test_several_versions_of_a_file_are_told() -> None:
    rows = [
        "a.py 0123abcd",
        "a.py 4567cdef, b.py 00000000",
        "b.py 00000000",
        "torch 2.13.0",
        "a.py 0123abcd, triton 3.5",
    ]
    assert versions_note(rows) == "Rows of 2 versions of a.py (0123abcd, 4567cdef) are among these."
    assert versions_note(rows[1:4]) == ""


def test_what_a_package_offers_needs_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint("theirs", "their:Mixer", "basedbench.mixers")]
    monkeypatch.setattr(sources, "entry_points", lambda group: offered)
    assert plugin_options("their.py 0123abcd", ["base_conv", "theirs"]) == ""
    assert plugin_options("mine.py 0123abcd", ["base_conv", "mine"]) == " --plugin mine.py"
    assert plugin_options(None, ["based"]) == plugin_options("2.13.0") == ""
