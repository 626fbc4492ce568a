"""`basedbench recall` as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from basedbench.cli import recall_report
from basedbench.engines import determinism, paces
from basedbench.store import Store, load
from basedbench.store.dataset import rows
from basedbench.training.cost import Estimate
from tests.cli.conftest import RunCli, heeds

SUITE = """
kind: recall
task: {vocab_size: 64}
train:
  segments: [{length: 16, pairs: 2, examples: 64}]
  batch_size: 16
  epochs: 2
  learning_rates: [0.01, 0.02]
test:
  segments: [{length: 16, pairs: 2}]
  examples: 20
models:
  - mixer: based
    grid: {d_model: 16, feature_dim: [2, 4]}
"""

WANDERS = """
import os
import tempfile
import torch
from basedbench.mixers import Mixer, register

os.chdir(tempfile.gettempdir())

@register
class Wanders(Mixer):
    name = "wanders"

    def forward(self, x_BLD):
        os.chdir(tempfile.gettempdir())
        return x_BLD

    @classmethod
    def check(cls, d_model, options):
        os.chdir(tempfile.gettempdir())

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        return {"x": torch.zeros(batch_size, 1, dtype=dtype, device=device)}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(SUITE)
    return path


def sweep(run_cli: RunCli, suite: Path, out: Path, *more: object, code: int = 0) -> str:
    outcome = run_cli("recall", "--sweep", "--suite", suite, "--device", "cpu", "--out", out, *more)
    assert outcome.exit_code == code, outcome.stderr
    return outcome.stdout + outcome.stderr


def basedbench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "basedbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_sweep_writes_a_row_per_run_and_goes_on(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    text = sweep(run_cli, suite, out, "--limit", 1)
    assert "3 runs are left" in text
    assert len(load(out, "recall")) == 1
    text = sweep(run_cli, suite, out)
    assert "Runs to do: 3; already done: 1" in text
    assert "basedbench plot pareto" in text
    frame = load(out, "recall")
    assert len(frame) == 4
    assert set(frame["suite"]) == {"own"}
    written = len(list((out / "recall").iterdir()))
    sweep(run_cli, suite, out)
    assert len(list((out / "recall").iterdir())) == written
    sweep(run_cli, suite, out, "--fresh", "--filter", "feature_dim=2 lr=0.01")
    assert len(list((out / "recall").iterdir())) == written + 1


def test_equal_runs_of_another_suite_are_taken_over(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    sweep(run_cli, suite, out)
    other = tmp_path / "other.yaml"
    other.write_text(SUITE.replace("[2, 4]", "[4]"))
    assert "Runs to do: 0; already done: 2" in sweep(run_cli, other, out)
    frame = load(out, "recall")
    assert frame.groupby("suite").size().to_dict() == {"own": 4, "other": 2}


@pytest.mark.usefixtures("own_registries")
def test_failed_rows_are_retried_when_asked(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out, plugin = tmp_path / "results", tmp_path / "mine.py"
    plugin.write_text(
        "import torch\n"
        "from basedbench.mixers import Mixer, register\n"
        "@register\n"
        "class Bad(Mixer):\n"
        "    name = 'bad'\n"
        "    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):\n"
        "        return {'x': torch.zeros(batch_size, 1, device=device)}\n"
        "    def forward(self, x_BLD):\n"
        "        raise RuntimeError('no')\n"
    )
    suite.write_text(SUITE.replace("mixer: based", "mixer: bad").replace(", feature_dim: [2, 4]", ""))
    told = sweep(run_cli, suite, out, "--plugin", plugin, code=1)  # nothing has a result
    assert "2 runtime_error: RuntimeError: no (mine.py line 9)\n" in told
    assert "basedbench plot" not in told  # there is nothing to draw
    again = "Failed runs run again with the same command and --retry runtime_error"
    assert f"{again}.\n" in told
    assert f"{again} instead of --fresh.\n" in sweep(run_cli, suite, out, "--plugin", plugin, "--fresh", code=1)
    assert set(load(out, "recall")["status"]) == {"runtime_error"}
    files = set((out / "recall").iterdir())
    sweep(run_cli, suite, out, "--plugin", plugin, "--retry", "oom", code=1)
    assert set((out / "recall").iterdir()) == files
    sweep(run_cli, suite, out, "--plugin", plugin, "--retry", "oom,runtime_error", code=1)
    assert len(set((out / "recall").iterdir()) - files) == 2
    store = Store(out)
    store.write(
        "recall", rows(out, "recall")[0] | {"status": "ok", "accuracy": 0.5, "created_at": None, "row_id": None}
    )
    sweep(run_cli, suite, out, "--plugin", plugin)


def test_the_run_that_validation_chooses_is_the_one_shown(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    suite.write_text(SUITE.replace("  examples: 20", "  examples: 20\n  select: validation").replace("[2, 4]", "2"))
    sweep(run_cli, suite, out)
    store = Store(out)
    for row, (tested, validated) in zip(rows(out, "recall"), ((0.9, 0.1), (0.2, 0.8)), strict=True):
        changed = {"accuracy": tested, "validation_accuracy": validated, "created_at": None, "row_id": None}
        store.write("recall", row | changed)
    text = sweep(run_cli, suite, out)
    assert "0.200" in text
    assert "0.900" not in text
    assert "chosen on the validation" in " ".join(text.split())


def test_several_seeds_are_shown_by_their_mean_at_the_best_rate(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    """As the figure has it: one lucky seed is not the model's accuracy."""
    out = tmp_path / "results"
    suite.write_text(SUITE.replace("[2, 4]", "2"))
    sweep(run_cli, suite, out, "--seed", "0,1")
    found = {0: (0.95, 0.1), 1: (0.7, 0.6)}
    for rate, accuracies in zip(
        sorted({row["learning_rate"] for row in rows(out, "recall")}), found.values(), strict=True
    ):
        for row in rows(out, "recall"):
            if row["learning_rate"] == rate:
                changed = {"accuracy": accuracies[row["seed"]], "created_at": None, "row_id": None}
                Store(out).write("recall", row | changed)
    text = " ".join(sweep(run_cli, suite, out, "--seed", "0,1").split())
    assert "mean over seeds" in text
    assert " 0.650 0.02 4/4 0 " in text


def test_a_thread_of_a_plugins_own_keeps_no_command(suite: Path, tmp_path: Path) -> None:
    """Python waits at the end for every thread that is not a daemon."""
    plugin, out = tmp_path / "mine.py", tmp_path / "results"
    plugin.write_text(
        "import threading, time\n"
        "from basedbench.mixers import get_mixer, register\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "register(type('Mine', (get_mixer('based'),), {'name': 'mine'}))\n"
    )
    suite.write_text(SUITE.replace("mixer: based", "mixer: mine").replace("[2, 4]", "2"))
    sweep = ["recall", "--sweep", "--suite", suite, "--plugin", plugin, "--device", "cpu", "--jobs", 1, "--out", out]
    ended = basedbench(*sweep, "--json")
    assert ended.returncode == 0, ended.stderr
    assert [row["status"] for row in json.loads(ended.stdout)] == ["ok", "ok"]


@pytest.mark.parametrize("option", ["--suite", "--out", "--plugin"])
def test_a_name_that_no_file_can_have_is_one_sentence(run_cli: RunCli, option: str) -> None:
    outcome = run_cli("recall", "--sweep", option, "f" * 300 + (".py" if option == "--plugin" else ""))
    assert outcome.exit_code == 2
    assert "file name too long; give another path." in outcome.stderr


def test_one_model(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    model = ["--mixer", "sliding_window", "--d-model", 32, "--window", "4", "--heads=2", "--lr", "1e-2", "--seed", "3"]
    outcome = run_cli("recall", *model, "--suite", suite, "--device", "cpu", "--out", out)
    assert outcome.exit_code == 0
    row = load(out, "recall").iloc[0]
    assert (row["mixer"], row["d_model"], row["learning_rate"], row["seed"]) == ("sliding_window", 32, 0.01, 3)
    assert '"window": 4' in row["config"]
    assert row["layer_mixers"] == "base_conv+sliding_window"


def test_layers_can_be_given(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    layers = ["--layers", "base_conv,sliding_window,based"]
    outcome = run_cli(
        "recall", "--mixer", "based", *layers, "--lr", "0.01", "--suite", suite, "--device", "cpu", "--out", out
    )
    assert outcome.exit_code == 0, outcome.stderr
    assert load(out, "recall").iloc[0]["layer_mixers"] == "base_conv+sliding_window+based"


def test_dry_run_lists_and_writes_nothing(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    text = sweep(run_cli, suite, out, "--dry-run")
    assert "4 runs" in text
    assert re.search(r"based d_model=16 feature_dim=2\s+2\s+0\s", text)
    assert "Nothing was run" in text
    assert not out.exists()
    assert "a guess" not in text
    untimed = run_cli("recall", "--mixer", "retnet", "--suite", suite, "--device", "cpu", "--out", out, "--dry-run")
    assert re.search(r"retnet d_model=64 .* s \?\s", untimed.stdout)
    assert "?: a guess" in untimed.stdout


def test_a_dry_run_lists_what_the_command_would_run(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    sweep(run_cli, suite, out, "--limit", 1)
    store, (row,) = Store(out), rows(out, "recall")
    other = tmp_path / "other.yaml"
    other.write_text(SUITE)

    def would(path: Path, *more: object) -> tuple[int, int]:
        plan = json.loads(sweep(run_cli, path, out, "--dry-run", "--json", *more))
        return sum(run["done"] for run in plan), sum(run["to_run"] for run in plan)

    assert would(suite) == would(other) == (1, 3)
    assert would(suite, "--fresh") == (0, 4)
    assert would(suite, "--limit", 2) == (1, 2)
    assert re.search(r"feature_dim=2\s+2\s+1\s+1\s", sweep(run_cli, suite, out, "--dry-run", "--limit", 1))
    store.write("recall", row | {"status": "oom", "created_at": None, "row_id": None})
    assert would(suite) == (1, 3)
    assert would(suite, "--retry", "oom") == would(other) == (0, 4)


@pytest.mark.parametrize(("limit", "seconds"), [((), "50 s"), (("--limit", 1), "30 s")])
def test_a_sweep_takes_no_less_than_its_longest_run(
    run_cli: RunCli,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: tuple[object, ...],
    seconds: str,
) -> None:
    estimates = {2: Estimate(30, False), 4: Estimate(20, False)}
    monkeypatch.setattr(recall_report, "estimate", lambda case, device: estimates[case.config["feature_dim"]])
    text = sweep(run_cli, suite, tmp_path, "--dry-run", "--jobs", 2, *limit)
    assert f"Roughly {seconds} for what would run on cpu" in text


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
def test_one_model_is_trained_as_the_suite_trains_it(run_cli: RunCli, suite: Path, tmp_path: Path, mixer: str) -> None:
    """`mamba` without layers of its own has a sweep's stack; both have rates of their own."""
    sections = "models:\n" + "".join(
        f"  - {{mixer: {name}, grid: {{d_model: 16}}, learning_rates: [0.003, 0.004]}}\n"
        for name in ("mamba", "attention")
    )
    suite.write_text(SUITE.partition("models:")[0] + sections)

    def ids(*arguments: object) -> list[str]:
        outcome = run_cli(*arguments, "--suite", suite, "--device", "cpu", "--out", tmp_path, "--dry-run", "--json")
        assert outcome.exit_code == 0, outcome.stderr
        return [run["case_id"] for run in json.loads(outcome.stdout)]

    whole = ids("recall", "--sweep", "--filter", f"^{mixer} ")
    assert len(whole) == 2
    one = ("recall", "--mixer", mixer, "--d-model", 16)
    assert ids(*one) == whole
    assert ids(*one, "--lr", "0.004") == whole[1:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--sweep", "--mixer"]),
        (["--mixer", "bsed"], ["'bsed'", "'based'"]),
        (["--mixer", "based", "--feture-dim", "3"], ["feture_dim", "feature_dim"]),
        (["--mixer", "sliding_window", "--window", "0"], ["window", "0"]),
        (["--mixer", "attention", "--d-model", "10", "--heads", "3"], ["heads", "3", "10"]),
        (["--mixer", "based", "--feature-dim"], ["--feature-dim needs a value"]),
        (["--mixer", "based", "stray"], ["'stray'"]),
        (["--sweep", "--mixer", "based"], ["--mixer", "--sweep"]),
        (["--sweep", "--windw", "3"], ["--windw", "--sweep"]),
        (["--sweep", "--suite", "quik"], ["'quik'", "'quick'"]),
        (["--sweep", "--filter", "("], ["regular expression"]),
        (["--sweep", "--filter", "nothing-like-it"], ["matches none"]),
        (["--sweep", "--retry", "oops"], ["--retry", "'oops'"]),
        (["--sweep", "--fresh", "--retry", "oom"], ["--retry", "--fresh"]),
        (["--sweep", "--lr", "fast"], ["--lr", "'fast'"]),
        (["--sweep", "--lr", "-1"], ["Error: --lr: learning rates lie"]),
        (["--sweep", "--epochs", "0"], ["epochs"]),
        (["--sweep", "--precision", "fp8"], ["precision", "fp8"]),
        (["--sweep", "--device", "gpu"], ["'gpu'", "cuda"]),
        (["--sweep", "--plugin", "none.py"], ["none.py"]),
        (["--sweep", "--results", "here"], ["--results is no option", "--out"]),
        (["--mixer", "based", "--results=here"], ["--results=here is no option", "--out"]),
        (["--swep"], ["no such option --swep", "'--sweep'"]),
        (["--sweep", "--sute=quick"], ["no such option --sute", "'--suite'"]),
        (["--sweep", "--heads", "2"], ["--heads does not go with --sweep"]),
        (["--sweep", "--d-model", "64"], ["--d-model does not go with --sweep"]),
        (["--mixer", "based", "--feature-dim", "[1"], ["--feature-dim '[1'", "a list such as [8,16]"]),
        (["--sweep", "--seed", "99999999999999999999"], ["Error: --seed: ", "less than"]),
        (["--sweep", "--seed", "3-1"], ["--seed 3-1", "goes up"]),
        (["--sweep", "--seed", "0-9999999"], ["--seed 0-9999999", "fewer than"]),
        (["--sweep", "--seed", "0:9"], ["whole numbers and ranges"]),
        (["--mixer", "based", "--d-model", str(2**63)], [f"d_model={2**63}", "from 1 to 2147483647"]),
        (["--mixer", "based", "--feature-dim", "9" * 13, "--dry-run"], ["feature_dim=" + "9" * 13, "cannot be built"]),
        (["--sweep", "--suite", ""], ["no suite is called ''"]),
        (["--sweep", "--time-limit", "9 minutes"], ["--time-limit '9 minutes'", "90s, 9m"]),
    ],
)
def test_bad_input_is_one_sentence(run_cli: RunCli, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    outcome = run_cli("recall", "--suite", "quick", "--out", tmp_path / "results", *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("Error: ")
    assert len(outcome.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.stderr
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_unwritable_folder(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_cli("recall", "--sweep", "--suite", suite, "--device", "cpu", "--out", tmp_path / "file" / "results")
    assert outcome.exit_code == 2
    assert str(tmp_path / "file") in outcome.stderr


def test_a_folder_of_rows_that_cannot_be_written_is_found_before_training(
    run_cli: RunCli, suite: Path, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "recall").write_text("")
    outcome = run_cli("recall", "--sweep", "--suite", suite, "--device", "cpu", "--out", tmp_path / "results")
    assert outcome.exit_code == 2
    assert "cannot write results to" in outcome.stderr


def test_more_jobs_than_runs_are_as_many_as_runs(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    outcome = run_cli("recall", "--sweep", "--suite", suite, "--device", "cpu", "--dry-run", "--jobs", 10**15)
    assert outcome.exit_code == 0


def test_rows_stay_where_they_were_asked_for_though_a_mixer_goes_elsewhere(
    run_cli: RunCli, suite: Path, tmp_path: Path, own_registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "wanders.py"
    plugin.write_text(WANDERS)
    suite.write_text(
        SUITE.replace(
            "  - mixer: based\n    grid: {d_model: 16, feature_dim: [2, 4]}",
            "  - {mixer: wanders, layers: [wanders], grid: {d_model: 16}}",
        )
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "second.py").write_text(WANDERS.replace("anders", "alks"))
    plugins = ("--plugin", "wanders.py", "--plugin", "second.py")
    told = sweep(run_cli, Path("own.yaml"), Path("results"), *plugins, "--limit", 1)
    assert re.search(r"wanders d_model=16 .* 1/2", told)
    assert len(load(tmp_path / "results", "recall")) == 1


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_sweep_keeps_what_is_finished_and_says_how_to_go_on(
    suite: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    out = tmp_path / "results"
    suite.write_text(SUITE.replace("[0.01, 0.02]", "{logspace: [-4, -2, 300]}"))
    command = ["recall", "--sweep", "--suite", str(suite), "--device", "cpu", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "basedbench", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
        preexec_fn=heeds,
    )
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "the same command again goes on" in errors
    assert "Traceback" not in errors
    assert 2 <= len(load(out, "recall")) < 600


def test_deterministic_is_told_to_workers(
    run_cli: RunCli, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (determinism.VARIABLE, determinism.WORKSPACE[0]):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    sweep(run_cli, suite, tmp_path, "--deterministic", "--limit", 1)
    assert '"BASEDBENCH_DETERMINISTIC": "1"' in load(tmp_path, "recall")["fingerprint"][0]


def test_precisions_are_rows_side_by_side(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    for precision in ("fp32", "tf32", "bf16", "bf16"):
        sweep(run_cli, suite, out, "--precision", precision, "--filter", "feature_dim=2 lr=0.01")
    frame = load(out, "recall")
    assert sorted(frame["precision"]) == ["bf16", "fp32", "tf32"]
    assert frame["case_id"].nunique() == 3
    assert set(frame["status"]) == {"ok"}
    losses = frame.set_index("precision")["loss_by_epoch"]
    assert losses["fp32"] != losses["bf16"]


def test_a_time_limit_leaves_the_rest_for_the_next_time(
    run_cli: RunCli, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paces, "estimate", lambda case, device: Estimate(1e6 if case.mixer == "attention" else 1, True))
    suite.write_text(SUITE + "  - mixer: attention\n    grid: {d_model: 16}\n")
    given = ["recall", "--sweep", "--suite", suite, "--device", "cpu", "--out", tmp_path, "--time-limit", "1m"]
    outcome = run_cli(*given, "--limit", 5)
    assert outcome.exit_code == 0
    assert re.search(
        r"\nTime limit of 1 min 0 s: 2 runs are left, about \d+ h .*\. The same command goes on from there\.\n",
        outcome.stderr,
    )
    assert "without --limit" not in outcome.stdout
    assert set(load(tmp_path, "recall")["mixer"]) == {"based"}
    again = run_cli(*given, "--filter", "attention", "--json")
    assert re.search(r"None would have ended in time, the shortest takes about .*: give more time\.\n", again.stderr)
    assert again.stdout == "[]\n"


PRINTING = """
import os
import torch
from basedbench.mixers import Mixer, register

def say(where):
    print("printed", where)
    os.write(1, b"written")

say("import")

@register
class Printing(Mixer):
    name = "printing"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        say("init")

    @classmethod
    def check(cls, d_model, options):
        say("check")

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        say("state")
        return {"x": torch.zeros(batch_size, 1, device=device)}

    def forward(self, x_BLD):
        say("forward")
        return x_BLD
"""


def test_stdout_has_nothing_but_json_whatever_a_mixer_prints(suite: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "printing.py"
    plugin.write_text(PRINTING)
    own = "{mixer: printing, options: {}}"  # for its label the options are looked at again
    suite.write_text(SUITE.replace("mixer: based", f"mixer: based\n    layers: [{own}, based]").replace("[2, 4]", "2"))
    given = ("--sweep", "--suite", suite, "--device", "cpu", "--out", tmp_path, "--plugin", plugin)
    done = basedbench("recall", *given, "--dry-run", "--json")
    assert len(json.loads(done.stdout)) == 2
    assert "printed check" in done.stderr
    assert "written" in done.stderr


def test_what_goes_on_and_what_begins_anew(run_cli: RunCli, suite: Path, tmp_path: Path) -> None:
    given = ["recall", "--sweep", "--suite", suite, "--device", "cpu", "--out", tmp_path, "--limit", 1]
    assert "the same command without --limit goes on from there.\n" in run_cli(*given).stdout
    assert "without --limit begins anew; without --fresh it runs what has no row" in run_cli(*given, "--fresh").stdout


HONEST_AND_CHEAT = """
import torch
from torch import nn
from basedbench.mixers import Mixer, register

@register
class Honest(Mixer):
    name = "honest"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_BLD):
        return self.out(x_BLD.cumsum(1))

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        return {"sum": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device)}

    def step(self, x_BD, state):
        return self.out(state["sum"] + x_BD), {"sum": state["sum"] + x_BD}

@register
class Cheat(Honest):
    name = "cheat"

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        return {"s": torch.zeros(batch_size, 1, dtype=dtype, device=device)}

    def step(self, x_BD, state):
        return self.out(x_BD), state

@register
class Ends(Honest):
    name = "ends"

    def step(self, x_BD, state):
        import os
        os._exit(3)

@register
class Elsewhere(Honest):
    name = "elsewhere"

    def forward(self, x_BLD):
        if not torch.is_grad_enabled() and len(x_BLD) == 2:
            raise RuntimeError("needs a GPU")
        return super().forward(x_BLD)
"""


MIXERS = ("honest", "cheat", "ends", "elsewhere")


@pytest.mark.usefixtures("own_registries")
def test_rows_of_a_mixer_whose_steps_are_not_its_forward_have_no_state_bytes(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HONEST_AND_CHEAT)
    models = "\n".join(f"  - mixer: {name}\n    grid: {{d_model: [16, 8]}}" for name in MIXERS)
    Path("own.yaml").write_text(SUITE.partition("models:")[0] + "models:\n" + models)
    given = ("recall", "--sweep", "--suite", "own.yaml", "--device", "cpu", "--plugin", "mine.py", "--out", "results")
    outcome = run_cli(*given, "--lr", "0.01")
    assert outcome.exit_code == 0, outcome.stderr
    said = [line for line in outcome.stderr.splitlines() if "state bytes" in line]
    assert len(said) == 3, said
    assert re.match(r"cheat: stepping differs from the forward by \d", said[0])
    assert "basedbench check mixer cheat --plugin mine.py --d-model 16 says more." in said[0]
    assert said[1].startswith("ends: its state could not be looked at (")
    unseen = r"its state could not be looked at: on a CPU it raises RuntimeError: needs a GPU \(mine.py line \d+\)"
    told = "its rows have no state bytes, for nobody knows .* check mixer elsewhere "
    assert re.match(rf"elsewhere: {unseen}; {told}", said[2])
    stored = {(row["mixer"], row["d_model"]): row for row in rows(Path("results"), "recall")}
    assert {row["status"] for row in stored.values()} == {"ok"}
    for (mixer, _), row in stored.items():
        states = [row[name] for name in recall_report.STATES]
        assert (row["state_doubt"] is None) == (mixer == "honest")
        assert all(size is None for size in states) if mixer != "honest" else all(states), states
        assert row["parameters"] > 0
    outcome = run_cli("plot", "pareto", "--results", "results", "--out", "pareto.png")
    assert outcome.exit_code == 0, outcome.stderr
    assert "Without state bytes, for these are in doubt: cheat: stepping differs" in " ".join(outcome.stdout.split())
    assert "Not shown: 6 without state_bytes" in outcome.stdout
    assert run_cli(*given, "--lr", "0.01").stderr.count("state bytes") == 0  # nothing is trained


@pytest.mark.usefixtures("own_registries")
def test_where_all_points_lack_a_state_pareto_says_why(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HONEST_AND_CHEAT)
    Path("own.yaml").write_text(SUITE)
    given = ("recall", "--mixer", "cheat", "--suite", "own.yaml", "--device", "cpu", "--plugin", "mine.py")
    outcome = run_cli(*given, "--d-model", "16", "--out", "results", "--limit", "1")
    assert outcome.exit_code == 0, outcome.stderr
    plotted = subprocess.run(
        [sys.executable, "-m", "basedbench", "plot", "pareto", "--results", "results"], capture_output=True, text=True
    )
    assert plotted.returncode
    assert "cheat: stepping differs from the forward by" in plotted.stderr
    assert "Traceback" not in plotted.stderr


@pytest.mark.usefixtures("own_registries")
def test_a_look_at_a_mixer_that_takes_long_is_told_while_it_goes_on(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("basedbench.cli.recall.SLOW_S", 0.2)
    file = tmp_path / "mine.py"
    file.write_text(HONEST_AND_CHEAT.replace("import torch\n", "import time\nimport torch\ntime.sleep(0.5)\n", 1))
    (tmp_path / "own.yaml").write_text(SUITE)
    given = ("recall", "--mixer", "honest", "--suite", tmp_path / "own.yaml", "--device", "cpu", "--plugin", file)
    said = "Looking at honest (d_model 16, at most 60 s) first: does it answer from its state alone?"
    outcome = run_cli(*given, "--d-model", "16", "--out", tmp_path / "results", "--limit", "1")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr.count(said) == 1
    quiet = run_cli(*given, "--d-model", "16", "--out", tmp_path / "other", "--limit", "1", "--quiet")
    assert said not in quiet.stderr
