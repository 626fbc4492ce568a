"""docs/SUITES.md has every key of a suite with its default, no other, and examples that run as it says."""

import re
from pathlib import Path

import pytest
import yaml

from basedbench.config import RecallSuite, ThroughputSuite, load_suite
from basedbench.config.load import ADDED
from basedbench.config.places import sections
from basedbench.config.section import Section
from basedbench.training.cases import recall_cases

PAGE = (Path(__file__).parents[2] / "docs" / "SUITES.md").read_text()
KINDS = {"Recall suites": RecallSuite, "Throughput suites": ThroughputSuite}


def tables(chapter: str) -> dict[str, list[list[str]]]:
    """The rows of a chapter's tables by the path that their heading names: `train`, `train.segments`, or `The file`."""
    text = re.search(rf"^## {chapter}\n(.*?)(?=^## )", PAGE, re.M | re.S)
    assert text
    found = {}
    for part in text[1].split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in body.splitlines() if line.startswith("| `")]
        found |= dict.fromkeys(re.findall(r"`([\w.]+)`", heading) or [""], rows)
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("chapter", KINDS)
def test_every_key_of_every_section_and_no_other(chapter: str) -> None:
    told = tables(chapter)
    known = {path: set(section.model_fields) for path, section in sections(KINDS[chapter])}
    known |= {
        f"{path}.{name}": set(keys)
        for path, section in sections(KINDS[chapter])
        for name, keys in section.MAPPINGS.items()
        if f"{path}.{name}" in told
    }
    assert {path: {name for row in rows for name in names(row[0])} for path, rows in told.items()} == known
    assert chapter == "Recall suites" or {"cases.grid", "models.grid"} <= set(told)


@pytest.mark.parametrize("chapter", KINDS)
def test_defaults_are_those_of_the_code(chapter: str) -> None:
    told = tables(chapter)
    for path, section in sections(KINDS[chapter]):
        for row in told[path]:
            for name in names(row[0]):
                field, where = section.model_fields[name], f"{path}.{name}: {row[1]}"
                if name in ("name", "description"):
                    continue
                assert field.is_required() == (row[1] == "needed"), where
                if not field.is_required():
                    given = yaml.safe_load(names(row[1])[0])
                    default = field.get_default(call_default_factory=True)
                    assert (type(default)(**given) if isinstance(default, Section) else given) == default, where


def test_what_extends_takes_is_told() -> None:
    assert all(f"`{name}`" in PAGE for name in ("extends", *ADDED))


def test_the_examples_load_and_are_as_many_runs_as_the_page_says(tmp_path: Path) -> None:
    for text, name in re.findall(r"```yaml\n(# (\S+)\n.*?)```", PAGE, re.S):
        (tmp_path / name).write_text(text)
    small, times, mine = (load_suite(str(tmp_path / f"{name}.yaml")) for name in ("small", "small-times", "mine"))
    assert f"= {len(recall_cases(small))} of one seed" in PAGE
    assert f"= {len(times.expand('cpu'))}, for each section" in PAGE
    assert len(recall_cases(mine)) == 3 * (len(recall_cases(small)) + 2)
    models = {case.model_label for case in recall_cases(small)}
    assert f"one point for each of the {len(models)} models" in " ".join(PAGE.split())
