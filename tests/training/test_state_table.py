"""The page of state sizes says what the models weigh today, and the later families have their published bytes."""

from pathlib import Path

import pytest

from basedbench.analysis.markdown import section
from basedbench.analysis.published import published
from basedbench.config import load_suite
from basedbench.models.state import state_bytes_zoology
from basedbench.training.cases import recall_cases
from basedbench.training.run import build_model
from basedbench.training.state_table import state_table

PAGE = Path(__file__).parents[2] / "docs" / "STATES.md"


def test_the_table_of_the_page_is_what_the_models_weigh() -> None:
    assert section(PAGE.read_text(), "states") == state_table(), (
        "run: basedbench results table states --write docs/STATES.md"
    )


def test_every_published_point_is_a_model_of_figure2_full() -> None:
    models = {case.model_label: case for case in recall_cases(load_suite("figure2-full"))}
    sizes = {(case.mixer, state_bytes_zoology(build_model(case), case.longest)) for case in models.values()}
    known = published()
    missing = set(zip(known["family"], known["state_bytes_zoology"].astype(int), strict=True)) - sizes
    assert not missing


@pytest.mark.parametrize(("suite", "models", "runs"), [("figure2-full", 55, 220), ("modern", 29, 116)])
def test_the_suites_hold_what_they_say(suite: str, models: int, runs: int) -> None:
    cases = recall_cases(load_suite(suite))
    assert len(cases) == runs
    assert len({case.model_label for case in cases}) == models


def test_the_frontier_reaches_from_4_kib_to_2_mib_and_chooses_on_a_split_of_its_own() -> None:
    cases = recall_cases(load_suite("frontier"))
    assert {case.test.select for case in cases} == {"validation"}
    assert {case.seed for case in cases} == {0, 1, 2}
    ladder = {}
    for case in {case.model_label: case for case in cases}.values():
        ladder.setdefault(case.mixer, set()).add(state_bytes_zoology(build_model(case), case.longest))
    for mixer in ("delta_net", "gated_delta_net", "kda", "gla", "retnet"):
        assert len(ladder[mixer]) >= 8, mixer
        assert min(ladder[mixer]) < 2**14, mixer
        assert max(ladder[mixer]) >= 2**19, mixer
