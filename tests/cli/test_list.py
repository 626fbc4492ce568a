"""`basedbench list`."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

import basedbench.contenders
from basedbench.config import suite_names
from basedbench.mixers import get_mixer, mixer_names
from basedbench.store import Store, schema

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for index, status in enumerate(["ok", "ok", "oom", "diverged", "ok"]):
        case = {"case_id": f"{index}abcdef00000", "suite": "figure2" if index < 4 else "quick", "status": status}
        model = {"family": "sliding_window", "config": {"window": 2**index, "heads": 2}, "d_model": 128, "seed": 0}
        run = {"learning_rate": 10**-2.5, "accuracy": 0.987654, "state_bytes": 1048576 * 16, "train_s": 1234.5678}
        when = {"created_at": START + timedelta(hours=index)}
        store.write("recall", schema.blank_row("recall") | case | model | run | when)
    for names in ({"operator": "ssd"}, {"model": "based-360m"}):
        case = {"case_id": f"{next(iter(names))}00000", "suite": "kernels", "status": "ok"}
        timed = {"contender": "triton", "mode": "forward_backward", "dtype": "bfloat16", "batch": 8, "length": 2048}
        row = schema.blank_row("throughput") | case | timed | {"median_ms": 0.123456, "tokens_per_s": 1.2e8}
        store.write("throughput", row | names)
    return store.root


def test_mixers_are_listed_with_their_options(run_cli):
    outcome = run_cli("list", "mixers")
    assert outcome.exit_code == 0
    for name in mixer_names():
        assert name in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    listed = json.loads(run_cli("list", "mixers", "--json").stdout)
    assert [mixer["name"] for mixer in listed] == mixer_names()
    based = next(mixer for mixer in listed if mixer["name"] == "based")
    assert based["options"]["feature_dim"]["default"] == get_mixer("based").Options().feature_dim
    assert all(mixer["description"] for mixer in listed)


def test_suites_are_listed_with_what_they_are(run_cli):
    outcome = run_cli("list", "suites")
    assert outcome.exit_code == 0
    assert "figure2" in outcome.stdout
    listed = json.loads(run_cli("list", "suites", "--json").stdout)
    assert [suite["name"] for suite in listed] == suite_names()
    assert {"name", "kind", "description"} == set(listed[0])


def test_contenders_are_listed_with_why_some_cannot_run(run_cli, monkeypatch):
    ours = SimpleNamespace(name="triton", operators=("ssd", "short_conv"), version="0.1.0", unavailable=None)
    peer = SimpleNamespace(name="fla", operators=("ssd",), version=None, unavailable="fla is not installed")
    monkeypatch.setattr(basedbench.contenders, "all_contenders", lambda: [ours, peer])
    outcome = run_cli("list", "contenders")
    assert outcome.exit_code == 0
    rows = [line.split(maxsplit=1) for line in outcome.stdout.splitlines() if line.strip()]
    assert [" ".join(part.split()) for part in rows[-2]] == ["triton", "ssd, short_conv 0.1.0 yes"]
    assert "fla is not installed" in rows[-1][1]
    listed = json.loads(run_cli("list", "contenders", "--json").stdout)
    assert [contender["unavailable"] for contender in listed] == [None, "fla is not installed"]


@pytest.mark.parametrize("what", ["mixers", "contenders"])
def test_a_plugin_that_is_not_there_is_one_sentence(run_cli, tmp_path, what):
    outcome = run_cli("list", what, "--plugin", tmp_path / "mine.py")
    assert outcome.exit_code == 2
    assert "mine.py" in outcome.stderr


def test_runs_are_a_table_within_100_columns(run_cli, results):
    outcome = run_cli("list", "runs", "--results", results)
    assert outcome.exit_code == 0
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("5 of 5 recall runs in")
    headings = next(line for line in lines if line.split()[:2] == ["case", "family"])  # the title may take two lines
    assert " ".join(headings.split()) == "case family config d_model lr seed status accuracy bytes seconds"
    assert max(map(len, lines)) <= 100
    (first,) = (line for line in lines if "0abcdef0" in line)
    for shown in ("sliding_window", "128", "0.003162", "0.9877", "16,777,216", "1,235"):
        assert shown in first
    assert lines[-1] == "2 not ok: `basedbench results show CASE` says why."


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--status", "oom"], [2]),
        (["--status", "oom", "--status", "ok"], [0, 1, 2, 4]),
        (["--limit", "2"], [3, 4]),
        (["--suite", "figure2", "--limit", "1"], [3]),
    ],
)
def test_runs_can_be_chosen(run_cli, results, arguments, wanted):
    outcome = run_cli("list", "runs", "--results", results, "--json", *arguments)
    rows = json.loads(outcome.stdout)
    assert [int(row["case_id"][0]) for row in rows] == wanted
    assert all(row["config"] == {"heads": 2, "window": 2 ** int(row["case_id"][0])} for row in rows)


def test_models_that_only_their_stacks_tell_apart_show_them(run_cli, tmp_path):
    store = Store(tmp_path / "stacks")
    for index, (mixer, stack) in enumerate([("based", "base_conv+based"), ("based", "based+based"), ("h3", "h3+h3")]):
        case = {"case_id": f"{index}abcdef00000", "suite": "own", "status": "ok", "mixer": mixer, "family": mixer}
        model = {"layer_mixers": stack, "config": {}, "d_model": 32, "learning_rate": 0.01, "seed": 0}
        store.write("recall", schema.blank_row("recall") | case | model)
    text = " ".join(run_cli("list", "runs", "--results", store.root).stdout.split())
    assert "layers=base_conv+based" in text
    assert "layers=based+based" in text
    assert "h3+h3" not in text


def test_throughput_runs_have_their_own_columns(run_cli, results):
    outcome = run_cli("list", "runs", "--kind", "throughput", "--results", results)
    assert outcome.exit_code == 0
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    for shown in ("median", "0.1235", "ssd", "2,048", "based-360m", "120,000,000"):
        assert shown in outcome.stdout


def test_where_there_are_only_times_they_are_listed(run_cli, tmp_path):
    """As `results show` points there, of whatever kind a case is."""
    row = {"case_id": "0abcdef00000", "suite": "own", "status": "ok", "operator": "ssd", "contender": "ours"}
    Store(tmp_path).write("throughput", schema.blank_row("throughput") | row)
    assert "1 of 1 throughput runs in" in run_cli("list", "runs", "--results", tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--status", "okay"], "did you mean 'ok'?"),
        (["--kind", "recal"], "did you mean 'recall'?"),
        (["--suite", "figure"], "did you mean 'figure2'?"),
        (["--kind", "calibration"], "run `basedbench calibrate --out"),
    ],
)
def test_wrong_choices_are_one_sentence(run_cli, results, arguments, message):
    outcome = run_cli("list", "runs", "--results", results, *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: ")
    assert message in outcome.stderr


def test_no_runs_say_what_to_run(run_cli, tmp_path):
    outcome = run_cli("list", "runs", "--results", tmp_path)
    assert outcome.exit_code == 2
    assert f"run `basedbench recall --sweep --out {tmp_path}` first" in outcome.stderr


@pytest.mark.parametrize(
    ("command", "wrong", "meant"),
    [
        (("list", "runs"), "--out", "--results"),
        (("results", "status"), "--output", "--results"),
        (("calibrate",), "--results", "--out"),
        (("throughput",), "--results", "--out"),
    ],
)
def test_the_option_of_the_results_folder_is_pointed_to(run_cli, command, wrong, meant):
    outcome = run_cli(*command, wrong, "here")
    assert outcome.exit_code == 2
    assert f"No such option: {wrong} (Possible options: {meant})" in outcome.stderr


PRINTING = """
import os
from pydantic import Field
from basedbench.contenders import Contender, register as compete
from basedbench.mixers import Mixer, MixerOptions, register

os.system("echo noise of a child")


class Options(MixerOptions):
    width: int = Field(default_factory=lambda: os.write(1, b"noise of a default"))
    odd: int = Field(default_factory=lambda: 1 // 0)


@register
class Printing(Mixer):
    "Prints."
    name, Options = "printing", Options


class Loud(Contender):
    name, operators = "loud", ("ssd",)

    @property
    def version(self):
        os.write(1, b"noise of a version")
        return "1"


compete(Loud())
"""


@pytest.mark.parametrize("what", ["mixers", "contenders"])
def test_stdout_has_nothing_but_json_whatever_a_plugin_prints(run_cli, tmp_path, own_registries, capfd, what):
    plugin = tmp_path / "printing.py"
    plugin.write_text(PRINTING)
    listed = json.loads(run_cli("list", what, "--plugin", plugin, "--json").stdout)
    streams = capfd.readouterr()
    assert streams.out == ""
    assert "noise of a child" in streams.err
    mine = [one for one in listed if one["name"] in ("printing", "loud")]
    if what == "mixers":
        assert "noise of a default" in streams.err
        assert mine[0]["options"]["odd"]["default"].startswith("ZeroDivisionError")
    else:
        assert mine[0]["version"] == "1"
