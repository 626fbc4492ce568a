"""`basedbench check`: tables and exit codes, for kernels, a plugin's contenders, and mixers."""

import json
from pathlib import Path

import pytest

from basedbench.checking.laws import LAWS
from basedbench.checking.run import _BLANK, _facts
from basedbench.signals import Terminated

CONTENDERS = """
import os
from basedbench.contenders import contender
from basedbench.kernels import short_conv


@contender("short_conv", name="twin")
def twin(x_BLD, weight_DW, bias_D, *, activation=None):
    return short_conv(x_BLD, weight_DW, bias_D, activation=activation)


@contender("short_conv", name="double", modes=("fwd",))
def double(x_BLD, weight_DW, bias_D, *, activation=None):
    return 2 * short_conv(x_BLD, weight_DW, bias_D, activation=activation)


@contender("short_conv", name="fatal", modes=("fwd",))
def fatal(x_BLD, weight_DW, bias_D, *, activation=None):
    if x_BLD.shape[1] == 17:
        os.abort()
    return short_conv(x_BLD, weight_DW, bias_D, activation=activation)


@contender("short_conv", name="raising", modes=("fwd",))
def raising(x_BLD, weight_DW, bias_D, *, activation=None):
    raise RuntimeError("first line\\nsecond line")
"""

MIXERS = """
import os
import time
import torch
from torch import nn
from basedbench.mixers import Mixer, get_mixer, register


class Sound(Mixer):
    name = "sound_one"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x_BLD):
        return self.prefill(x_BLD)[0]

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        return {"mean": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device)}

    def step(self, x_BD, state):
        mean_BD = torch.lerp(self.proj(x_BD), state["mean"], 0.5)
        return mean_BD, {"mean": mean_BD.clone()}


@register
class Future(Sound):
    name = "future_one"

    def forward(self, x_BLD):
        return super().forward(x_BLD) + x_BLD.mean(1, keepdim=True)


@register
class Scribbles(Sound):
    name = "scribbles"

    def forward(self, x_BLD):
        return super().forward(x_BLD.mul_(0.5))


@register
class Branches(Sound):
    name = "branches"

    def forward(self, x_BLD):
        return super().forward(x_BLD) if x_BLD.sum() < 1e9 else x_BLD


register(Sound)


class Odd(Exception):
    def __str__(self):
        raise ValueError("no text either")


def odd():
    raise Odd


def behave(name, act):
    def forward(self, x_BLD):
        act()
        return Sound.forward(self, x_BLD)

    register(type(name, (Sound,), {"name": name, "forward": forward, "__module__": __name__}))


behave("exits", lambda: os._exit(0))
behave("dies", os.abort)
behave("hangs", lambda: time.sleep(60))
behave("odd", odd)
behave("prints", lambda: os.write(1, b"noise"))
get_mixer("prints").check = lambda d_model, options: os.write(1, b"noise of options")
os.write(1, b"noise")
"""


@pytest.fixture
def contender_plugin(tmp_path: Path, own_registries: None) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CONTENDERS)
    return path


@pytest.fixture
def mixer_plugin(tmp_path: Path, own_registries: None) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MIXERS)
    return path


def test_kernels_within_bounds_exit_0(run_cli):
    outcome = run_cli("check", "--device", "cpu", "--filter", "^(short_conv|embedding) .* L(17|1000) ", "--jobs", 1)
    assert outcome.exit_code == 0
    assert "decode step fp32" in outcome.stdout
    assert "problems on cpu, computed by reference" in outcome.stdout
    assert "WRONG" not in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    assert outcome.stderr.startswith("checking ")


def test_json_has_a_row_for_every_problem(run_cli):
    outcome = run_cli("check", "--device", "cpu", "--filter", "^short_conv .* L17 ", "--json", "--jobs", 1)
    rows = json.loads(outcome.stdout, parse_constant=pytest.fail)
    assert {row["mode"] for row in rows} == {"fwd", "gradients", "step"}
    for row in rows:
        assert row["verdict"] == "ok"
        assert row["implementation"] == "reference"
        assert 0 <= row["error"] <= row["bound"]


def test_a_wrong_a_raising_and_a_dying_contender_are_rows(run_cli, contender_plugin):
    pattern = r" fwd fp32 L(1|17|1000) D64 W4"
    outcome = run_cli("check", "--device", "cpu", "--plugin", contender_plugin, "--filter", pattern, "--jobs", 2)
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert "second line" in outcome.stdout or "first line" in outcome.stdout
    assert "short_conv/double fwd fp32 L1000 D64 W4: WRONG" in outcome.stdout
    assert "short_conv/fatal fwd fp32 L17 D64 W4: failed: crashed: the worker died with signal 6" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith("12 problems on cpu, computed by double and fatal and")
    assert "5 ok, 3 WRONG, 4 failed" in outcome.stdout


@pytest.mark.parametrize(
    ("place", "given", "jobs"),
    [("cpu", [], 8), ("cuda:0", [], 5), ("cuda:0", ["--jobs", 3], 3), ("cpu", ["--jobs", 9], 9)],
)
def test_how_many_processes_share_the_work(run_cli, monkeypatch, place, given, jobs):
    found = []

    def run_checks(chosen, place, plugins, jobs, listener):
        found.append(jobs)
        return []

    monkeypatch.setattr("basedbench.checking.run.run_checks", run_checks)
    monkeypatch.setattr("basedbench.engines.resolve_devices", lambda name: [place])
    monkeypatch.setattr("basedbench.engines.cores", lambda: 16)
    monkeypatch.setattr("basedbench.engines.compile_ahead.free_memory", lambda device: 35 * 2**30)
    run_cli("check", "--filter", "^short_conv", *given)
    assert found == [jobs]


def test_quiet_prints_what_is_wrong_alone(run_cli, contender_plugin):
    outcome = run_cli(
        "check", "-q", "--device", "cpu", "--plugin", contender_plugin, "--filter", "(twin|double) fwd fp32 L17 D64 W4"
    )
    assert outcome.exit_code == 1
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("short_conv/double fwd fp32 L17 D64 W4: WRONG: the output: relative error")
    assert lines[-1].endswith("1 ok, 1 WRONG.")
    assert outcome.stderr == ""


def test_what_a_contender_does_not_take_is_skipped_with_its_reason(run_cli, contender_plugin):
    arguments = ("--plugin", contender_plugin, "--filter", "twin step fp32 L17 D64 W4", "--device", "cpu")
    outcome = run_cli("check", *arguments)
    assert outcome.exit_code == 0
    assert "1 skipped: registered for fwd, fwd_bwd only" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "nothing_like_it"], "matches none of"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["mixer", "bassed"], "did you mean 'based'?"),
        (["mixer", "based", "--feature-dims", "8"], "did you mean 'feature_dim'?"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(run_cli, arguments, message):
    outcome = run_cli("check", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: ")
    assert message in outcome.stderr


def test_a_registered_mixer_keeps_the_contract(run_cli):
    outcome = run_cli("check", "mixer", "based", "--d-model", 16, "--feature-dim", 4)
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[-1] == f"based keeps all {len(LAWS)} laws."
    assert "kept    causal" in outcome.stdout


def test_a_plugins_mixer_without_a_stated_size(run_cli, mixer_plugin):
    outcome = run_cli("check", "mixer", "sound_one", "--plugin", mixer_plugin)
    assert outcome.exit_code == 0
    assert f"sound_one keeps all {len(LAWS) - 1} laws that it can be held to." in outcome.stdout
    assert "states no size of the state" in outcome.stdout
    assert "-       state has the stated size\n" in outcome.stdout
    assert "kept    state has the stated size" not in outcome.stdout
    laws = json.loads(run_cli("check", "mixer", "sound_one", "--plugin", mixer_plugin, "--json").stdout)
    assert [law["law"] for law in laws if law["kept"] is None] == ["state has the stated size"]


def test_a_broken_law_says_where_by_how_much_and_what_next(run_cli, mixer_plugin):
    outcome = run_cli("check", "mixer", "future_one", "--plugin", mixer_plugin, "--quiet")
    assert outcome.exit_code == 1
    assert "BROKEN  causal" in outcome.stdout
    assert "the output at position 0: changes by" in outcome.stdout
    assert "Mend this first: Look for a mean, norm or convolution over the whole length" in outcome.stdout
    assert "Next: Compare forward and step at the first position named" in outcome.stdout
    assert "kept" not in outcome.stdout
    assert "laws are broken.\nNext: mend this first, from which others may follow: causal: the output" in outcome.stdout


def test_the_broken_law_that_others_follow_from_is_to_be_mended_first(run_cli, mixer_plugin):
    """An input that is written into breaks half of the laws; in some it raises, which is not what to read."""
    outcome = run_cli("check", "mixer", "scribbles", "--plugin", mixer_plugin, "--quiet")
    said = " ".join(outcome.stdout.split())
    assert outcome.stdout.count("BROKEN") > 3
    assert "used in an in-place operation" in said
    assert said.count("Mend this first: No x.mul_()") == said.count("Mend this first") == 1
    assert "Next: mend this first, from which others may follow: inputs are left as they are: the input of" in said
    assert said.count("mend this first") == 1


def test_a_broken_law_as_json(run_cli, mixer_plugin):
    outcome = run_cli("check", "mixer", "future_one", "--plugin", mixer_plugin, "--json")
    laws = {law["law"]: law for law in json.loads(outcome.stdout)}
    assert not laws["causal"]["kept"]
    assert laws["causal"]["breaches"][0]["where"] == "the output at position 0"
    assert laws["state keeps its size"] == {"law": "state keeps its size", "kept": True, "breaches": []}


@pytest.mark.parametrize(
    ("mixer", "reason"),
    [
        ("exits", "the mixer: the worker died with exit code 0"),
        ("dies", "the mixer: the worker died with signal 6"),
        ("odd", "mine.py line "),
    ],
)
def test_a_mixer_that_ends_its_process_breaks_laws_and_no_more(run_cli, mixer_plugin, monkeypatch, mixer, reason):
    two = [law for law in LAWS if law.name in ("sequences are independent", "causal")]
    monkeypatch.setattr("basedbench.checking.mixer.LAWS", two)
    outcome = run_cli("check", "mixer", mixer, "--plugin", mixer_plugin)
    assert outcome.exit_code == 1
    said = " ".join(outcome.stdout.split())
    assert (said.count("BROKEN"), said.count(reason)) == (2, 3)
    assert f"{len(LAWS)} laws are broken. {len(LAWS) - 2} were not looked at." in outcome.stdout
    assert f"Next: mend this first, which kept 2 laws from being looked at: {reason}" in said


def test_what_only_a_recording_would_show_is_hinted_at(run_cli, mixer_plugin):
    """A branch on a tensor's value raises in one law alone: that is what it looks for."""
    outcome = run_cli("check", "mixer", "branches", "--plugin", mixer_plugin, "--quiet")
    assert outcome.stdout.count("BROKEN") == 1
    assert "Next: No .item(), no branch on a tensor's value" in outcome.stdout
    assert "mend this first" not in outcome.stdout


def test_a_mixer_that_never_answers_is_waited_for_once(run_cli, mixer_plugin, monkeypatch):
    monkeypatch.setattr("basedbench.checking.mixer.LIMIT_S", 0.5)
    outcome = run_cli("check", "mixer", "hangs", "--plugin", mixer_plugin)
    assert outcome.exit_code == 1
    assert "the mixer: no answer within 0.5 s" in outcome.stdout
    assert (
        outcome.stdout.splitlines()[-3]
        == f"hangs: 1 of {len(LAWS)} laws is broken. {len(LAWS) - 1} were not looked at."
    )
    laws = json.loads(run_cli("check", "mixer", "hangs", "--plugin", mixer_plugin, "--json").stdout)
    assert [law["kept"] for law in laws] == [False] + (len(LAWS) - 1) * [None]


def test_stdout_has_nothing_but_json_whatever_a_mixer_prints(run_cli, mixer_plugin, capfd):
    outcome = run_cli("check", "mixer", "prints", "--plugin", mixer_plugin, "--json")
    assert not any(law["breaches"] for law in json.loads(outcome.stdout))
    streams = capfd.readouterr()
    assert streams.out == ""
    assert "noise of options" in streams.err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_stopped_it_says_what_was_found(run_cli, monkeypatch, stop, code):
    def run_checks(chosen, place, plugins, jobs, listener):
        listener(_BLANK | _facts(chosen[1]) | {"verdict": "ok"})
        listener(_BLANK | _facts(chosen[0]) | {"verdict": "WRONG", "reason": "off"})
        raise stop

    monkeypatch.setattr("basedbench.checking.run.run_checks", run_checks)
    outcome = run_cli("check", "--device", "cpu", "--filter", "^short_conv .* fp32")
    assert outcome.exit_code == code
    assert "1 ok, 1 WRONG" in outcome.stdout
    assert "failed" not in outcome.stdout
    assert "Stopped: " in outcome.stderr


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_stopped_between_laws_it_says_what_was_found(run_cli, monkeypatch, stop, code):
    def examine(subject, plugins):
        yield LAWS[0], []
        raise stop

    monkeypatch.setattr("basedbench.checking.mixer.examine", examine)
    outcome = run_cli("check", "mixer", "based")
    assert outcome.exit_code == code
    begun = f"kept    output has shape and dtype\nbased: 0 of {len(LAWS)} laws are broken. {len(LAWS) - 1} were not"
    assert outcome.stdout.startswith(begun)
    assert f"Stopped: {len(LAWS) - 1} of {len(LAWS)} laws were not looked at." in outcome.stderr
