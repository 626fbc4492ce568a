"""What docs/ROWS.md shows runs as it is written there; every promised column is on the page."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from basedbench.cli import app
from basedbench.store.schema import JSON_COLUMNS, PROMISED, STATUSES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ROWS.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(command.partition(" > ")[0])
    assert name == "basedbench"
    outcome = CliRunner().invoke(app, arguments)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout


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
