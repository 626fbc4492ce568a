"""A second context of this process begins and ends; where that cannot be, nothing happens."""

import ctypes

import pytest

from basedbench.timing.mappings import renew_mappings


class Driver:
    """Notes what it is asked for; creating a context answers `code`."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, []

    def cuCtxCreate_v2(self, context, flags: int, index: int) -> int:  # noqa: N802
        self.asked.append(("create", flags, index))
        context._obj.value = None if self.code else 7
        return self.code

    def cuCtxDestroy_v2(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        self.asked.append(("destroy", context.value))
        return 0


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:3", 3)])
def test_a_context_begins_and_ends(monkeypatch: pytest.MonkeyPatch, device: str, index: int) -> None:
    driver = Driver(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert renew_mappings(device)
    assert driver.asked == [("create", 0, index), ("destroy", 7)]


def test_what_was_not_made_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2)  # out of memory
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert not renew_mappings("cuda:0")
    assert driver.asked == [("create", 0, 0)]


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not renew_mappings("cuda:0")
