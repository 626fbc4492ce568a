import signal
from dataclasses import replace

import pytest

from basedbench.engines import compile_ahead as module
from basedbench.training.cases import recall_cases
from basedbench.training.data import recall_data, split_sizes
from tests.training.conftest import tiny_suite


def cases():
    suite = tiny_suite([{"mixer": "based", "grid": {"d_model": [16, 32]}}, {"mixer": "mamba", "grid": {"d_model": 16}}])
    train = suite.train.model_copy(update={"learning_rates": [0.01, 0.02], "seeds": [0, 1]})
    return recall_cases(suite.model_copy(update={"train": train}))


@pytest.fixture(autouse=True)
def interruptible():
    """`rehearse` is the body of a process that ignores Ctrl-C; the tests' own, and what it starts, must not."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_model_is_compiled_for_once():
    found = module.distinct_models(cases())
    assert [(case.mixer, case.d_model) for case in found] == [("based", 16), ("based", 32), ("mamba", 16)]


@pytest.mark.parametrize(("cores", "memory", "count"), [(16, 100, 3), (3, 100, 1), (2, 100, 0), (16, 7, 1), (16, 0, 0)])
def test_processes_fit_the_machine(monkeypatch, cores, memory, count):
    monkeypatch.setattr(module, "free_memory", lambda device: memory * 2**30)
    monkeypatch.setattr(module, "rehearse", print)  # ends at once, whatever it is given
    ahead = module.Ahead(cases(), ["cuda:0"], cores)
    assert not ahead.processes  # workers come first
    ahead.start()
    processes = list(ahead.processes)
    for process in processes:
        process.terminate()
        process.join()
    assert len(processes) == count
    awaited = [ahead.rehearsed.awaited(case, busy=False) for case in module.distinct_models(cases())]
    assert awaited == [True] * count + [False] * (3 - count)
    ahead.settle()
    assert not ahead.processes
    assert not any(ahead.rehearsed.awaited(case, busy=True) for case in cases())


def test_where_no_process_can_be_started_workers_compile_themselves(monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "free_memory", lambda device: 100 * 2**30)
    monkeypatch.setattr(module, "start_training", refuse)
    ahead = module.Ahead(cases(), ["cuda:0"], 16)
    assert ahead.rehearsed.awaited(cases()[0], busy=False)
    ahead.start()
    assert not ahead.processes
    assert not any(ahead.rehearsed.awaited(case, busy=True) for case in cases())


def test_processes_go_round_the_devices_that_have_room(monkeypatch):
    room = {"cuda:0": 7, "cuda:1": 100, "cuda:2": 13}
    monkeypatch.setattr(module, "free_memory", lambda device: room[device] * 2**30)
    assert module.seats(["cuda:0", "cuda:1", "cuda:2"], 64)[:6] == [
        *("cuda:0", "cuda:1", "cuda:2"),
        *("cuda:1", "cuda:2", "cuda:1"),
    ]
    assert len(module.seats(["cuda:1", "cuda:1"], 10)) == 10 // 2
    assert len(module.seats(["cuda:1"] * 4, 8)) == 8 - 1 - 4
    assert module.seats(["cuda:0", "cuda:1"], 2) == module.seats([], 64) == []


def test_a_case_that_fails_does_not_keep_the_next_from_its_turn(monkeypatch):
    from basedbench.training.run import RecallRun

    seen = []

    def rehearse(run):
        seen.append(run.case.d_model)
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(RecallRun, "rehearse", rehearse)
    module.rehearse(cases()[:5:4], "cpu", ())
    assert seen == [16, 32]


@pytest.mark.parametrize("examples", [100_000, 20_000, 512, 300, 256, 255, 7])
@pytest.mark.parametrize("fresh", [False, True])
def test_few_examples_have_the_same_kinds_of_steps(examples, fresh):
    """And what kernels are compiled for, of numbers that they are given: whether those are multiples of 16."""
    from basedbench.training.run import RecallRun

    def kinds(case):
        return list(dict.fromkeys(RecallRun(case, recall_data(case, "cpu"), "cpu").schedule(0)))

    case = cases()[0]
    segments = [part.model_copy(update={"examples": examples}) for part in case.train.segments]
    whole = replace(case, train=case.train.model_copy(update={"segments": segments, "batch_size": 256, "fresh": fresh}))
    few = module.few_examples(whole)
    counts = [part.examples for part in few.train.segments]
    assert all(count <= min(examples, 511) and count % 16 == examples % 16 for count in counts)
    sizes = [list(dict.fromkeys(split_sizes(count, 256))) for count in (examples, *counts)]
    assert sizes == [sizes[0]] * len(sizes)
    assert kinds(few) == [(index, size) for index in range(len(counts)) for size in sizes[0]]


def test_every_kind_of_step_is_taken(monkeypatch):
    from basedbench.training.data import recall_data
    from basedbench.training.run import RecallRun

    case = cases()[0]
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    taken = []

    def noted(name):
        step = getattr(RecallRun, name)
        return lambda self, *kind: (taken.append((name, *kind)), step(self, *kind))

    for name in ("train_batch", "test_batch"):
        monkeypatch.setattr(RecallRun, name, noted(name))
    run.rehearse()
    assert [kind for kind in taken if kind[0] == "train_batch"] == [
        ("train_batch", *kind) for kind in dict.fromkeys(run.schedule(0))
    ]
    assert {kind[1] for kind in taken if kind[0] == "test_batch"} == set(range(len(run.judged)))


def test_what_has_the_steps_first_may_take_them():
    """Each begins with the first example: behind the last one there is none."""
    from basedbench.training.data import recall_data
    from basedbench.training.run import RecallRun

    case, taken = cases()[0], []
    run = RecallRun(case, recall_data(case, "cpu"), "cpu")
    run.rehearse(lambda steps: taken.extend([steps(), steps()]))
    assert len(taken) == 2


def test_a_model_is_waited_for_while_it_is_in_hand_and_one_to_come_only_beside_others():
    models = module.distinct_models(cases())
    rehearsed = module.Rehearsed(models[:1])
    other_rate = [case for case in cases() if case.model_id == models[0].model_id][-1]
    assert other_rate.case_id != models[0].case_id
    seen = []
    for state in (module.TO_COME, module.IN_HAND, module.DONE):
        rehearsed.set(models[0], state)
        seen.append([rehearsed.awaited(other_rate, busy=busy) for busy in (False, True)])
    assert seen == [[False, True], [True, True], [False, False]]
    assert not rehearsed.awaited(models[1], busy=True)


def test_a_model_is_done_whether_or_not_it_could_be_rehearsed(monkeypatch):
    from basedbench.training.run import RecallRun

    models = module.distinct_models(cases())
    rehearsed, seen = module.Rehearsed(models), []

    def rehearse(run):
        seen.append([rehearsed.awaited(case, busy=False) for case in models])
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(RecallRun, "rehearse", rehearse)
    module.rehearse(models, "cpu", (), rehearsed)
    assert seen == [[place == turn for place in range(len(models))] for turn in range(len(models))]
    assert not any(rehearsed.awaited(case, busy=True) for case in models)


def test_models_that_come_later_leave_the_processor_to_earlier_ones(monkeypatch):
    now = [0]

    def nice(more):
        now[0] += more
        return now[0]

    monkeypatch.setattr(module.os, "nice", nice)
    reached = []
    for rank in (0, 5, 3, 100):
        module._yield_to_earlier(rank)
        reached.append(now[0])
    assert reached == [module.NICE, module.NICE + 5, module.NICE + 5, module.NICEST]
