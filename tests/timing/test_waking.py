"""A device's context asked of the driver beside imports; without a driver torch is left to make it."""

import ctypes
import sys
import threading
from typing import Any

import pytest
import torch

from basedbench.timing import waking


class Driver:
    """Notes what it is asked for, and by which thread; gives up where it is told to."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.asked, self.threads = refuses, list[str](), set[int]()

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: object) -> int:
            self.asked.append(name)
            self.threads.add(threading.get_ident())
            return 100 if name == self.refuses else 0

        return ask


STEPS = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize("refuses", ["", *STEPS])
def test_the_driver_is_asked_step_by_step(refuses: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(refuses)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert waking.make_context(1) is (refuses == "")
    assert driver.asked == STEPS[: STEPS.index(refuses) + 1 if refuses else 3]


def test_without_a_driver_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "LIBRARY", "libnothing_of_that_name.so.1")
    assert waking.make_context(0) is False


def test_torch_takes_the_device_once_the_driver_has_been_asked_by_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, taken = Driver(), list[tuple[str, int]]()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append((device, len(driver.asked))))
    waking.open_device("cuda:1")
    assert taken == [("cuda:1", 3)]
    assert threading.get_ident() not in driver.threads
    assert waking.FIRST_BACKWARD in sys.modules
