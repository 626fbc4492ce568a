"""A small recall row to vary, and a folder to put it in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from basedbench.store import Store, schema

Row = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def make_row() -> Callable[..., Row]:
    def make(case_id: str = "c1", **values: Any) -> Row:
        return schema.blank_row("recall") | {"suite": "s", "case_id": case_id, "status": "ok"} | values

    return make
