"""`basedbench throughput` as a user runs it, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from basedbench.cli import throughput, throughput_report, timing_tables
from basedbench.cli.throughput_report import outcome
from basedbench.engines import cores
from basedbench.store import Store, load
from basedbench.store.schema import blank_row
from basedbench.timing.ceilings import calibrate, rates_of, stored_ceilings
from basedbench.timing.worker import Failure, Worker, Workers
from tests.cli.conftest import RunCli, heeds
from tests.timing.conftest import make_case

SUITE = """
kind: throughput
measure: {seconds: 0.1, min_rounds: 3, max_rounds: 4, round_ms: 1, timeout: 60, threads: 1}
cases:
  - operator: attention
    contenders: [sdpa-math]
    baseline: sdpa-math
    grid: {length: [8, 16], heads: 2, key_dim: 8, value_dim: 8}
  - operator: taylor_attention
    contenders: [ours, fla-parallel]
    baseline: attention/sdpa-math
    grid: {length: [8, 16], heads: 2, key_dim: 4, value_dim: 8}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suites") / "own.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def run(run_cli: RunCli, suite: Path, out: Path) -> Any:
    """`throughput` over the small suite; more arguments may follow."""
    return lambda *more: run_cli("throughput", "--suite", suite, "--device", "cpu", "--out", out, *more)


def test_a_suite_runs_is_shown_and_goes_on(run: Any, out: Path) -> None:
    first = run("--limit", 2)
    assert first.exit_code == 0
    assert "4 cases are left" in first.stdout
    rest = run()
    assert "4 of 6 cases to do" in rest.stderr
    frame = load(out, "throughput")
    assert sorted(frame["status"]) == ["ok"] * 4 + ["unsupported"] * 2
    assert "taylor_attention/fla-parallel fwd fp32 1x8" in rest.stdout
    assert "is not installed" in rest.stdout or "needs a CUDA device" in rest.stdout
    assert all(len(line) <= 100 for line in rest.stdout.splitlines() if str(out) not in line)
    assert "\x1b[" not in rest.stdout
    files = sorted((out / "throughput").iterdir())
    done = run()
    assert "0 of 6 cases to do" in done.stderr
    assert done.stdout == rest.stdout
    assert sorted((out / "throughput").iterdir()) == files


def test_rows_say_what_they_are(run: Any, out: Path) -> None:
    outcome = run("--contender", "ours", "--filter", "taylor.* 1x16", "--json", "--quiet")
    assert outcome.stderr == ""
    (row,) = json.loads(outcome.stdout)
    assert (row["operator"], row["contender"], row["length"], row["status"]) == ("taylor_attention", "ours", 16, "ok")
    assert row["baseline"] == "attention/sdpa-math"
    assert row["cache"] == "hot"
    assert row["threads"] == 1
    assert 0 < row["flops_fraction"] < 1
    assert row["checked_against"] == "float64"


def test_fresh_and_retry_time_again(run: Any, out: Path) -> None:
    both = ("--contender", "ours", "--contender", "fla-parallel", "--filter", "^taylor")
    run(*both)
    before = load(out, "throughput").set_index("case_id")["created_at"]
    assert "2 of 4 cases to do" in run("--retry", "unsupported,oom", *both).stderr
    assert "1 of 1 cases to do" in run("--fresh", "--filter", "ours.*1x8 ").stderr
    after = load(out, "throughput").set_index("case_id")["created_at"]
    assert sorted(before.index) == sorted(after.index)
    assert (after > before.reindex(after.index)).sum() == 3


def test_the_end_says_how_what_failed_runs_again(run: Any, tmp_path: Path, own_registries: None) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import os\n"
        "from basedbench.contenders import contender\n"
        "contender('attention', name='dies')(lambda q, k, v: os.abort())\n"
        "contender('attention', name='wrong')(lambda q, k, v: 2 * v)\n"
    )
    told = run("--plugin", plugin, "--filter", "1x8 ").stdout
    assert "Failed cases run again with the same command and --retry crashed,incorrect.\n" in told  # not unsupported
    assert "--retry" not in run("--contender", "ours", "--contender", "fla-parallel").stdout


def test_ours_on_a_cpu_is_no_kernel_and_said_to_be_none(run: Any) -> None:
    """Who is several times as fast as it there has not beaten a kernel."""
    said = "ours: on a CPU its PyTorch form; the kernels are for GPUs.\n"
    assert said in run("--filter", "1x8 ").stdout
    assert said not in run("--contender", "sdpa-math", "--filter", "1x8 ").stdout


def test_a_ratio_that_is_not_there_is_accounted_for(run: Any) -> None:
    alone = " ".join(run("--contender", "ours", "--filter", "taylor.* 1x8 ").stdout.split())
    assert "1 row without a ratio, as attention/sdpa-math has no time there: taylor_attention/ours fwd" in alone
    assert "without a ratio" not in run().stdout


def test_more_rounds_on_demand(run: Any, out: Path) -> None:
    run("--contender", "ours", "--filter", "taylor.* 1x8 ", "--rounds", 9)
    assert load(out, "throughput")["rounds"].tolist() == [9]


def test_a_dry_run_writes_nothing(run: Any, out: Path) -> None:
    outcome = run("--dry-run")
    assert outcome.stdout.count("run  ") == 6
    assert "6 of 6 cases would run" in outcome.stdout
    listed = json.loads(run("--dry-run", "--json").stdout)
    assert [case["due"] for case in listed] == [True] * 6
    assert not (out / "throughput").exists()


@pytest.mark.usefixtures("own_registries")
def test_a_plugin_is_checked_timed_and_shown(run: Any, out: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from basedbench.contenders import contender\n"
        "from basedbench.kernels import taylor_attention\n"
        "@contender('taylor_attention', name='mine')\n"
        "def mine(q, k, v):\n    return taylor_attention(q, k, v, chunk=16)\n"
        "@contender('taylor_attention', name='wrong')\n"
        "def wrong(q, k, v):\n    return taylor_attention(q, k, v) + 1\n"
    )
    outcome = run("--plugin", own, "--filter", "1x8 ")
    assert "taylor_attention/mine" in outcome.stdout
    assert "taylor_attention/wrong fwd fp32 1x8: incorrect: the output: relative error" in outcome.stdout
    rows = load(out, "throughput").set_index("contender")
    assert rows.loc["mine", "status"] == "ok"
    assert rows.loc["wrong", "status"] == "incorrect"


LIMITS = """
import os, sys
from basedbench.contenders import Contender, get_contender, register

class Limited(Contender):
    operators = ("taylor_attention",)
    def __init__(self, name, act):
        self.name, self.act = name, act
    def limits(self, case):
        return self.act()
    def build(self, case):
        return get_contender("reference").build(case)

register(Limited("raises", lambda: 1 // 0))
register(Limited("five", lambda: 5))
register(Limited("leaves", lambda: sys.exit(0)))
register(Limited("exits", lambda: os._exit(0)))
register(Limited("limited", lambda: "too long"))
register(Limited("prints", lambda: os.write(1, b"noise") and None))
"""


@pytest.mark.usefixtures("own_registries")
def test_limits_that_fail_cost_their_contender_s_rows(
    run: Any, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "limits.py"
    plugin.write_text(LIMITS)
    outcome = run(
        "--plugin",
        plugin,
        "--filter",
        "taylor_attention/(raises|five|leaves|exits|limited|prints|ours) .* 1x8 ",
        "--json",
    )
    rows = {row["contender"]: row for row in json.loads(outcome.stdout)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "ours": "ok", "prints": "ok", "raises": "runtime_error", "five": "runtime_error", "leaves": "runtime_error",
        "exits": "crashed", "limited": "unsupported",
    }  # fmt: skip
    assert "ZeroDivisionError" in rows["raises"]["reason"]
    assert "(limits.py line " in rows["raises"]["reason"]
    assert rows["limited"]["reason"] == "too long"
    assert "limits of five gives 5" in rows["five"]["reason"]
    assert "noise" not in capfd.readouterr().out


def test_more_threads_than_cores_are_refused(run_cli: RunCli, tmp_path: Path) -> None:
    suite = tmp_path / "many.yaml"
    suite.write_text(SUITE.replace("threads: 1", "threads: 1000000"))
    outcome = run_cli("throughput", "--suite", suite, "--device", "cpu", "--out", tmp_path / "new")
    assert outcome.exit_code == 2
    assert f"this process may use {cores()} cores" in outcome.stderr
    assert not (tmp_path / "new").exists()


def test_a_baseline_that_is_nobody_is_refused(run: Any, tmp_path: Path) -> None:
    suite = tmp_path / "nobody.yaml"
    suite.write_text(SUITE.replace("baseline: sdpa-math", "baseline: sdpa-maths"))
    outcome = run("--suite", suite)
    assert outcome.exit_code == 2
    assert "baseline 'sdpa-maths': no contender is called 'sdpa-maths'; did you mean 'sdpa-math'?" in outcome.stderr


def test_a_call_faster_than_the_ceilings_is_pointed_out(run: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = ("--contender", "ours", "--filter", "taylor.* 1x16 ")
    assert "than the ceilings allow" not in run(*only).stdout
    row = load(out, "throughput").iloc[0]
    monkeypatch.setattr(throughput_report, "BEYOND", row["flops_fraction"] / 2)
    assert "1 row faster than the ceilings allow: taylor_attention/ours fwd fp32 1x16." in run(*only).stdout


@pytest.mark.parametrize(
    ("cache", "bandwidth", "flops", "beyond"),
    [("cold", 2.0, 0.1, True), ("hot", 2.0, 0.1, False), ("hot", None, 2.0, True), ("cold", None, None, False)],
)
def test_bytes_that_a_cache_holds_are_no_matter_of_the_memory_s_ceiling(
    cache: str, bandwidth: float | None, flops: float | None, beyond: bool
) -> None:
    row = {"cache": cache, "bandwidth_fraction": bandwidth, "flops_fraction": flops}
    assert throughput_report._beyond_ceilings(row) is beyond


def test_an_interval_is_in_the_unit_of_its_median() -> None:
    row = {"median_ms": 0.02, "ci_low_ms": 0.0198, "ci_high_ms": 0.11}
    assert timing_tables._interval(row) == "19.8 - 110"
    assert timing_tables._interval(row | {"median_ms": 0.2}) == "0.0198 - 0.11"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "quick-thruput"], "did you mean 'quick-throughput'?"),
        (["--suite", "figure2"], "is a recall suite"),
        (["--contender", "our"], "did you mean 'ours'?"),
        (["--contender", "flash-varlen"], "has no operator or model that flash-varlen computes"),
        (["--contender", "mamba_ssm"], "has no operator or model that mamba_ssm computes"),
        (["--mode", "bwd"], "--mode 'bwd'"),
        (["--mode", "decode"], "has no case of mode decode"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--filter", "nothing"], "matches none of 6 cases"),
        (["--filter", "("], "is not a regular expression"),
        (["--retry", "failed"], "unknown status 'failed'"),
        (["--fresh", "--retry", "oom"], "--retry: with --fresh everything runs again"),
        (["--plugin", "absent.py"], "no such Python file"),
        (["--out", "/proc/nowhere"], "cannot write results"),
        (["--time-limit", "soon"], "--time-limit 'soon'"),
        (["--suite", "quick"], "timed with --models quick"),
    ],
)
def test_bad_input_is_one_sentence(run: Any, arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""


def test_ctrl_c_stops_and_says_how_to_go_on(suite: Path, out: Path) -> None:
    command = [sys.executable, "-m", "basedbench", "throughput", "--suite", str(suite), "--device", "cpu"]
    command += ["--out", str(out), "--rounds", "200"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeds
    )
    assert process.stderr is not None
    while "[1/6]" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command again goes on from there" in errors
    assert "Traceback" not in errors
    stored = len(load(out, "throughput"))
    assert 1 <= stored < 6


def test_a_case_that_ran_out_of_rounds_says_so_once() -> None:
    row = {"status": "ok", "median_ms": 2.0, "ci_low_ms": 1.9, "ci_high_ms": 2.1, "rounds": 25}
    assert outcome(row | {"stop_reason": "25 rounds"}) == "2 ms +- 5.0 %, 25 rounds"
    assert outcome(row | {"stop_reason": "time limit of 2 s"}) == "2 ms +- 5.0 %, 25 rounds, time limit of 2 s"


def test_the_share_of_sampling_is_that_of_the_whole_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput_report.time, "monotonic", lambda: now[0])
    now[0] += 9  # imports
    progress = throughput_report.Progress(total=3, chosen=3, began=100.0)
    timed = blank_row("throughput") | {
        "operator": "taylor_attention", "contender": "ours", "mode": "fwd", "dtype": "fp32", "batch": 1, "length": 8
    }  # fmt: skip
    progress(timed | {"status": "oom", "reason": "needs more", "sampling_s": 0.0, "prepare_s": 0.0})
    assert "left" not in capsys.readouterr().err
    now[0] += 31  # ceilings, and a case
    progress(timed | {"status": "oom", "reason": "out of memory", "sampling_s": 6.0, "prepare_s": 1.0})
    assert "about 31 s left" in capsys.readouterr().err
    now[0] += 20
    progress(timed | {"status": "unsupported", "reason": "beyond it", "sampling_s": None, "prepare_s": 2.0})
    progress.close({"calling and checking first": 18.0, "ceilings": 0.1}, {"taylor_attention/ours": 17.0})
    told = (
        "10 % warm-up and sampling, 15 % start, 30 % calling and checking first, 5 % preparing cases, 40 % between them"
    )
    assert capsys.readouterr().err.endswith(f"1 min 0 s: {told}\n")


@pytest.mark.parametrize(("called_s", "says_so"), [(19.0, False), (21.0, True)])
def test_what_took_longest_is_told_if_most_of_the_time_was_not_for_timing(
    called_s: float, says_so: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(throughput_report.time, "monotonic", lambda: now[0])
    progress = throughput_report.Progress(total=4, chosen=4, began=0.0)
    for operator, contender, seconds in (("ssd", "ours", 3), ("wkv4", "ours", 4), ("ssd", "ours", 3)):
        row = {"operator": operator, "contender": contender, "mode": "fwd", "dtype": "fp32", "batch": 1, "length": 8}
        told = {"status": "oom", "reason": "out of memory", "sampling_s": 1.0, "prepare_s": seconds}
        progress(blank_row("throughput") | row | told)
    now[0] = 60.0
    progress.close({"calling and checking first": called_s}, {"ssd/reference": 70.0, "wkv4/ours": 8.0})
    ahead, prepared = "ssd/reference to be called first, in all processes, 1 min 10 s", "ssd/ours to be prepared, 6 s"
    assert (f"What took longest: {ahead}; {prepared}.\n" in capsys.readouterr().err) is says_so


WANTED = ("copy", "matmul_fp32")


def test_ceilings_that_a_stopped_command_left_out_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CEILING_SECONDS_ON_A_CPU", 0.01)
    store = Store(tmp_path)
    store.write("calibration", next(iter(calibrate("cpu", 0.01, 1, ["copy"]))))
    copy = stored_ceilings(store.root, "cpu", 1)
    found = throughput._ceilings(store, "cpu", 1, True)
    assert set(found) == set(rates_of("cpu"))
    assert found["copy"] == copy["copy"]
    assert len(list((tmp_path / "calibration").iterdir())) == len(found)
    assert throughput._ceilings(store, "cpu", 1, True) == found
    assert len(list((tmp_path / "calibration").iterdir())) == len(found)


def test_a_worker_finds_the_ceilings_that_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CEILING_SECONDS", 0.01)
    case, store = make_case("reference"), Store(tmp_path)
    with Workers("cpu", []) as workers:
        found = throughput._ceilings_by_a_worker(store, "cpu", True, WANTED, workers, case)
        assert set(found) == set(WANTED)
        assert all(rate > 0 for rate in found.values())
        monkeypatch.setattr(Worker, "ceilings", lambda self, request: pytest.fail("they are stored"))
        assert throughput._ceilings_by_a_worker(store, "cpu", True, WANTED, workers, case) == found


def test_a_worker_that_dies_of_the_ceilings_costs_their_fractions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "ceilings", lambda self, request: Failure("crashed", "it died"))
    case = make_case("reference")
    with Workers("cpu", []) as workers:
        gone = workers.of(case)
        assert throughput._ceilings_by_a_worker(Store(tmp_path), "cpu", True, WANTED, workers, case) == {}
        assert workers.of(case) is not gone
