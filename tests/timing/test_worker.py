"""Real worker processes: whatever happens over there is an answer here."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from basedbench.config.throughput import MeasureSection
from basedbench.timing.samples import Round
from basedbench.timing.worker import CeilingsRequest, Failure, Worker, Workers, _set_up
from tests.timing.conftest import make_case

ROOT = Path(__file__).parents[2]
PLUGIN = str(Path(__file__).with_name("plugin_misbehaving.py"))
MEASURE = MeasureSection(round_ms=2, timeout=60)


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker("cpu", [PLUGIN])
    yield one
    one.stop()


def test_a_worker_times_several_cases_and_keeps_its_output_to_itself(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    for length in (8, 24):
        facts = worker.prepare(make_case("good", length=length), MEASURE)
        assert isinstance(facts, dict)
        assert facts["status"] == "ok"
        for _ in range(2):
            one = worker.round(60)
            assert isinstance(one, Round)
            assert all(sample > 0 for sample in one.samples_ms)
        assert worker.close() == {}
    assert "noise" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("contender", "status", "reason"),
    [
        ("dies", "crashed", "signal 6.*"),
        ("segfaults", "crashed", "signal 11"),
        ("exits", "crashed", "exit code 3"),
        ("killed", "crashed", "signal 9"),
        ("leaves", "runtime_error", "SystemExit: 4"),
        ("odd", "runtime_error", "GeneratorExit: gone"),
        ("raises", "runtime_error", "ValueError: no such thing"),
        ("hungry", "oom", "out of memory"),
        ("unable", "unsupported", "No available kernel"),
        ("signature", "runtime_error", "TypeError: .*takes 1 positional argument"),
    ],
)
def test_failures_are_answers(worker: Worker, contender: str, status: str, reason: str) -> None:
    answer = worker.prepare(make_case(contender), MEASURE)
    assert isinstance(answer, Failure)
    assert answer.status == status
    assert re.search(reason, answer.reason)


def test_a_worker_that_was_refused_a_case_takes_the_next(worker: Worker) -> None:
    assert isinstance(worker.prepare(make_case("unable"), MEASURE), Failure)
    assert worker.close() == {}
    assert worker.prepare(make_case("good"), MEASURE)["status"] == "ok"


def test_wrong_results_are_known_before_any_time(worker: Worker) -> None:
    facts = worker.prepare(make_case("wrong"), MEASURE)
    assert isinstance(facts, dict)
    assert facts["status"] == "incorrect"


def test_a_worker_without_a_case_has_nothing_to_forget_and_goes_on_after_it_has_forgotten(worker: Worker) -> None:
    assert worker.forget() is None
    assert not worker._started
    for _ in range(2):
        assert worker.prepare(make_case("good"), MEASURE)["status"] == "ok"
        assert worker.close() == {}
        assert worker.forget() is None


def test_what_the_server_imports_touches_no_gpu() -> None:
    touched = """
import importlib, torch
from basedbench import forking
forking.driver_is_there = lambda: True
def refuse(*args, **kwargs):
    raise AssertionError("a process that touched the GPU cannot be forked")
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, refuse)
for name in (*forking.TIMING, *forking.TRAINING):
    importlib.import_module(name)

import threading
assert threading.active_count() == 1  # nothing is lost to a process that is forked now
from triton.runtime.cache import triton_key
assert triton_key.cache_info().currsize == 1
"""
    subprocess.run([sys.executable, "-c", touched], check=True)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_a_worker_ends_with_the_command_that_was_killed_whatever_it_is_at() -> None:
    code = """
from tests.timing.test_worker import MEASURE, PLUGIN, Worker, make_case
worker = Worker("cpu", [PLUGIN])
assert worker.wait() is None
print(worker._process.pid, flush=True)
worker.prepare(make_case("hangs"), MEASURE)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as command:
        assert command.stdout is not None
        state = Path("/proc", command.stdout.readline().strip(), "stat")
        assert state.exists()
        time.sleep(0.5)
        command.kill()
    limit = time.monotonic() + 20
    with contextlib.suppress(OSError):  # it is gone
        while state.read_text().split()[2] != "Z":
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_an_operator_is_shielded_from_torchs_compiler_only_once_that_is_there() -> None:
    code = """
import sys, torch
from basedbench.timing.preloaded import COMPILER, shield_when_needed
shield_when_needed()
@torch.library.custom_op("basedbench_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
@torch._disable_dynamo(recursive=False)
def thrice(x): return 3 * x
x = torch.ones(2)
assert (twice(x) == 2).all() and (thrice(x) == 3).all()
assert COMPILER not in sys.modules
import torch._dynamo
shielded, shield = [], torch._dynamo.disable
def noting(function, *args, **kwargs):
    shielded.append(function.__name__)
    return shield(function, *args, **kwargs)
torch._dynamo.disable = noting
for _ in range(2):
    assert (twice(x) == 2).all() and (thrice(x) == 3).all()
assert len(shielded) == 2 and "thrice" in shielded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_key_of_compiled_kernels_is_there_before_a_worker_asks() -> None:
    code = """
from basedbench.timing import preloaded
from triton.runtime import cache
assert preloaded.make_triton_key() is not None
assert cache.triton_key.cache_info().misses == 1
assert preloaded.make_triton_key() == cache.triton_key()
assert cache.triton_key.cache_info().misses == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_forked_on_a_machine_with_a_gpu_has_nothing_left_to_import() -> None:
    """Neither to begin with, nor for its first backward pass; and torch's compiler is nobody's before it is needed."""
    code = """
import sys
from basedbench import forking
from basedbench.timing import rehearsal, worker
forking.driver_is_there = lambda: True
import subprocess
subprocess.run = lambda *arguments, **options: None  # the driver's module
from basedbench.timing import preloaded, waking
assert waking.FIRST_BACKWARD in sys.modules
there = set(sys.modules)
waking.make_context = lambda index: True
import torch
torch.cuda.set_device = lambda device: None
torch.set_num_threads = lambda count: None
waking.wake = lambda device: None
worker._set_up("cuda:0", [])
rehearsal._set_up("cuda:0", [])
assert {one for one in set(sys.modules) - there if one.partition(".")[0] in ("torch", "pandas", "basedbench")} == set()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_library_locks_with_in_a_worker_is_not_left_behind(tmp_path: Path) -> None:
    plugin = tmp_path / "locks.py"
    plugin.write_text(
        "import multiprocessing\n"
        "from basedbench.contenders import Contender, register\n"
        "class Locks(Contender):\n"
        "    name, operators = 'locks', ('taylor_attention',)\n"
        "register(Locks())\n"
        "LOCK = multiprocessing.RLock()\n"
    )
    code = f"""
from basedbench.timing.worker import Worker
if __name__ == "__main__":
    worker = Worker("cpu", [{str(plugin)!r}])
    assert worker.wait() is None
    worker.stop()
"""
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "leaked" not in ended.stderr


def test_only_the_workers_of_other_cases_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, reference = make_case("ours"), make_case("reference")
    asked: list[Worker] = []
    monkeypatch.setattr(Worker, "forget", lambda self: asked.append(self))
    with Workers("cpu", []) as workers:
        workers.start([ours, reference])
        workers.spare([ours])
        assert asked == [workers.of(reference)]
        monkeypatch.setattr(Worker, "forget", lambda self: Failure("crashed", "it died"))
        gone = workers.of(ours)
        workers.spare([reference])
        assert workers.of(ours) is not gone


def test_what_takes_too_long_is_ended(worker: Worker) -> None:
    worker.prepare(make_case("good"), MEASURE)  # the start-up has its own limit
    answer = worker.prepare(make_case("hangs"), MEASURE.model_copy(update={"timeout": 0.3}))
    assert answer == Failure("timeout", "no answer within 0.3 s")
    worker._process.join(5)
    assert not worker._process.is_alive()


@pytest.mark.parametrize("limit_s", [3e6, 1e308, float("inf")])
def test_a_limit_may_be_longer_than_any_wait(worker: Worker, limit_s: float) -> None:
    facts = worker.prepare(make_case("good"), MEASURE.model_copy(update={"timeout": limit_s, "round_ms": limit_s}))
    assert isinstance(facts, dict)
    assert isinstance(worker.round(limit_s), Round)


def test_a_worker_measures_ceilings_and_then_cases(worker: Worker) -> None:
    rows = worker.ceilings(CeilingsRequest(0.01))
    assert [row["ceiling"] for row in rows] == ["copy", "matmul_fp32", "matmul_bf16", "launch"]
    assert all(row["median_ms"] > 0 for row in rows)
    assert worker.prepare(make_case("good"), MEASURE)["status"] == "ok"


def test_what_is_tuned_in_a_worker_is_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, found in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("TRITON_CACHE_AUTOTUNING", raising=False)
        if given:
            monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", given)
        monkeypatch.setattr(gc, "freeze", lambda: None)
        _set_up("cpu", [])
        assert os.environ["TRITON_CACHE_AUTOTUNING"] == found


def test_waiting_for_workers_that_are_up_costs_nothing_and_tells_of_those_that_are_not(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    worker = Worker("cpu", [str(broken)])
    first = worker.wait()
    assert isinstance(first, Failure)
    assert "division by zero" in first.reason
    assert worker.wait() == first == worker.prepare(make_case(), MEASURE)
    worker.stop()
    with Workers("cpu", []) as workers:
        workers.start([make_case("ours")])
        workers.wait()
        assert workers.of(make_case("ours"))._started


def test_a_plugin_that_fails_over_there_is_an_answer(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    worker = Worker("cpu", [str(broken)])
    answer = worker.prepare(make_case(), MEASURE)
    worker.stop()
    assert isinstance(answer, Failure)
    assert "division by zero" in answer.reason


def test_workers_are_kept_while_needed_and_ended_after() -> None:
    ours, reference = make_case("ours"), make_case("reference")
    with Workers("cpu", []) as workers:
        workers.start([ours, reference])
        first = workers.of(ours)
        gone = workers.of(reference)
        workers.start([ours], later=[reference])
        assert workers.of(reference) is gone
        assert len(workers) == 2
        workers.start([ours])
        assert workers.of(ours) is first
        assert not gone._process.is_alive()
        workers.discard(ours)
        assert not first._process.is_alive()
        assert workers.of(ours) is not first
        last = workers.of(ours)
    assert not last._process.is_alive()
    assert not Path(last._log).exists()
