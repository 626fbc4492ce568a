"""What docs/ROWS.md shows runs as it is written there; every promised column is on the page."""

import re
from pathlib import Path

import pandas as pd
import pytest

from basedbench.store.schema import JSON_COLUMNS, PROMISED, STATUSES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ROWS.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert capsys.readouterr().out


def test_the_newest_rows_of_pandas_are_those_of_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, pd.DataFrame] = {}
    for example in (one for one in EXAMPLES if "basedbench.load" in one or "read_parquet" in one):
        exec(example.replace("cpu", "h100"), names)  # where runs have older rows
    assert len(names["rows"]) > len(names["newest"])
    assert sorted(names["newest"]["row_id"].dropna()) == sorted(names["frame"]["row_id"].dropna())


def test_every_promised_column_and_status_is_on_the_page() -> None:
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert {name for names in PROMISED.values() for name in names} <= told
    assert {*STATUSES, *JSON_COLUMNS} <= told
