"""Which cases have rows of an earlier version of the user's file."""

import pytest

from basedbench.contenders import contender, get_contender
from basedbench.timing.choose import outdated
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
