"""Which cases have rows of an earlier version of the user's file."""

from pathlib import Path

import pytest

from basedbench.config.throughput import MeasureSection
from basedbench.contenders import Contender, contender, get_contender, register
from basedbench.store import Store, load
from basedbench.timing.choose import outdated
from basedbench.timing.clock import WallClock
from basedbench.timing.session import Session
from basedbench.timing.sweep import Sweep
from tests.timing.conftest import make_case


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(
    ("version", "status", "old"),
    [
        ("this", "ok", False),
        ("mine.py 00000000", "ok", True),
        (None, "runtime_error", True),  # it raised in its first call: whether this file did, nobody knows
        (None, "unsupported", False),
    ],
)
def test_a_row_of_another_version_or_of_none(version: str | None, status: str, old: bool) -> None:
    contender("taylor_attention", name="mine")(lambda q, k, v: v)
    mine, case = get_contender("mine"), make_case("mine")
    known = mine.version if version == "this" else version
    row = {"case_id": case.id, "contender_version": known, "status": status}
    assert (outdated([case], [row], [mine]) == [case]) is old


@pytest.mark.usefixtures("own_registries")
def test_what_a_file_refused_is_of_that_file(tmp_path: Path) -> None:
    """It may do more in its next version: the row would say for ever that it does not."""
    contender("taylor_attention", name="mine", modes=("fwd",))(lambda q, k, v: v)
    mine, case = get_contender("mine"), make_case("mine", mode="fwd_bwd")
    Sweep("own", Store(tmp_path), "cpu", MeasureSection()).run([case], lambda row: None)
    [row] = load(tmp_path, "throughput").to_dict("records")
    assert (row["status"], row["contender_version"]) == ("unsupported", mine.version)
    assert outdated([case], [row | {"contender_version": "mine.py 00000000"}], [mine]) == [case]


@pytest.mark.usefixtures("own_registries")
def test_so_is_what_a_class_refused() -> None:
    class Narrow(Contender):
        name, operators = "narrow", ("taylor_attention",)

        def limits(self, case):
            return "not that wide"

    one = register(Narrow())
    facts = Session(make_case("narrow"), MeasureSection(), "cpu", WallClock()).prepare()
    assert facts == {"status": "unsupported", "reason": "not that wide", "contender_version": one.version}
