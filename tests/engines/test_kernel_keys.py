"""A kernel's key does not tell what was compiled before it."""

import gc

import pytest
import torch
import triton.language as tl
from triton.runtime.jit import DependenciesFinder, JITFunction

from basedbench.checking import run as checking
from basedbench.engines import kernel_keys
from basedbench.engines.kernel_keys import make_alike
from basedbench.timing import rehearsal, waking
from basedbench.timing import worker as timing

HALF, THIRD = tl.constexpr(0.5), tl.constexpr(1 / 3)


def twice(x):
    return x * HALF


def once(x):
    return twice(x) * THIRD


def kernel(x):
    once(x)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DependenciesFinder, "_update_hash", DependenciesFinder._update_hash)


def key(monkeypatch: pytest.MonkeyPatch, *before: str) -> str:
    """That of `kernel` once others have theirs."""
    made = {function.__name__: JITFunction(function) for function in (twice, once, kernel)}
    for name, function in made.items():
        monkeypatch.setitem(globals(), name, function)
    for name in before:
        assert made[name].cache_key
    found: str = made["kernel"].cache_key
    monkeypatch.undo()
    return found


ORDERS = [(), ("twice",), ("once",), ("twice", "once")]


def test_a_key_is_the_same_whatever_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # once is enough
        make_alike()
    looks_first = DependenciesFinder._update_hash
    found = set()
    for before in ORDERS:
        with monkeypatch.context() as patch:
            patch.setattr(DependenciesFinder, "_update_hash", looks_first)
            found.add(key(patch, *before))
    assert len(found) == 1


def test_constants_of_what_is_called_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    make_alike()
    looks_first = DependenciesFinder._update_hash
    found = set()
    for value in (0.5, 0.25):
        with monkeypatch.context() as patch:
            patch.setattr(DependenciesFinder, "_update_hash", looks_first)
            patch.setitem(globals(), "HALF", tl.constexpr(value))
            found.add(key(patch))
    assert len(found) == 2


@pytest.mark.parametrize("set_up", [timing._set_up, rehearsal._set_up, checking.set_up])
def test_helpers_and_workers_have_the_same_keys(set_up, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(kernel_keys, "make_alike", lambda: steps.append("keys"))
    for module, name in ((waking, "open_device"), (waking, "wake"), (torch.cuda, "set_device")):
        monkeypatch.setattr(module, name, lambda device: steps.append("device"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    for name in ("FLA_CACHE_RESULTS", "TRITON_CACHE_AUTOTUNING"):  # set in a process of its own; put back here
        monkeypatch.setenv(name, "")
    set_up("cuda:0", [])
    assert steps[:2] == ["keys", "device"]
