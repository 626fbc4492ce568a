"""The tables of docs/TWENTYFOUR.md."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from basedbench.analysis.generation import PUBLISHED, generation_section, nothing
from basedbench.analysis.markdown import section
from basedbench.cli.documents import GENERATION, TABLES
from tests.plots.conftest import language_frame, language_row

__all__ = ["language_frame"]  # the fixture of the figures
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "TWENTYFOUR.md").read_text()
PAPER: dict[str, Any] = {"suite": "paper-table1"}


def test_without_rows_every_section_says_what_makes_them(language_frame: pd.DataFrame) -> None:
    for name in GENERATION:
        assert generation_section(name, None) == generation_section(name, language_frame.assign(suite="mine"))
    assert generation_section("ratio", None) == nothing("generation")
    assert "`basedbench throughput --suite paper-table1`" in generation_section("published", None)


def test_the_ratio_is_to_the_fastest_attention_and_says_where_that_ends(language_frame: pd.DataFrame) -> None:
    table = generation_section("ratio", language_frame)
    assert "Based 1.3B, times as fast as the fastest of attention-1.3b by=sdpa-flash (each to within 1.4 %)" in table
    lines = [line for line in table.splitlines() if line.startswith("| 128 |")]
    # (1 + 128 x 512 / 2^16) / (1 + 128 / 256) = 4/3; at 1,024 twice as much cache; 4,096 do not fit
    assert lines == ["| 128 | 1.33 | 2.00 | oom |"] * 2


def test_memory_is_that_of_the_fastest_and_of_the_row_that_failed(language_frame: pd.DataFrame) -> None:
    lines = generation_section("memory", language_frame).splitlines()
    assert "| attention-1.3b | 4,096 | 4.10 MB | 1,000 | 128 | 314 at batch 1 |" in lines
    assert "| based-360m | 1,024 | 0.01 MB | 9,000 | - | 85,333 at batch 128 |" in lines


def test_published_numbers_stand_beside_the_same_conditions() -> None:
    changed = '{"preset": "based-1.3b", "state_dtype": "bf16"}'
    frame = pd.DataFrame(
        [
            language_row("attention-1.3b", 128, 1024, 128.0, **PAPER),
            language_row("attention-1.3b", 128, 1024, 12.8, **PAPER, contender="ours"),
            language_row("based-1.3b", 128, 1024, 5.12, **PAPER),
            language_row("based-1.3b", 128, 1024, 4.0, **PAPER, config=changed),
            language_row("based-1.3b", 2, 4096, 50.0, **PAPER, mode="prefill", tokens_per_s=160e3),
            language_row("attention-1.3b", 2, 4096, 80.0, **PAPER, mode="prefill", tokens_per_s=100e3),
        ]
    )
    table = generation_section("published", frame)
    assert "| attention-1.3b | sdpa-flash | 4,096 | 103.5 | 0.99 | 100 | 1 |" in table
    assert "| attention-1.3b | ours | 4,096 | - | - | - | 10 |" in table
    assert "| based-1.3b | ours | 4,096 | 161.71 | 24.28 | 160 | 25 |" in table
    assert "| based-1.3b state_dtype=bf16 | ours | 4,096 | 161.71 | 24.28 | - | 32 |" in table
    assert "| based-1.3b over attention-1.3b by sdpa-flash | 1.56 | 24.53 | 1.60 | 25.00 |" in table
    assert "| based-1.3b state_dtype=bf16 over attention-1.3b by sdpa-flash | 1.56 | 24.53 | - | 32.00 |" in table
    assert "360m" not in table


def test_heads_of_70_are_held_against_heads_of_64() -> None:
    times = {"attention-1.3b": 40.0, "attention-1.3b-h64": 10.0, "attention-1.3b-h128": None}
    frame = pd.DataFrame([language_row(model, 128, 1024, time, **PAPER) for model, time in times.items()])
    table = generation_section("heads", frame)
    assert "| sdpa-flash | 1,024 | attention-1.3b | 40 ms (39.6 - 40.4) | 4.00 |" in table
    assert "| sdpa-flash | 1,024 | attention-1.3b-h128 | oom | - |" in table


def test_prefill_is_by_length() -> None:
    rows = [
        language_row("based-360m", 1, length, 1.0, suite="prefill", mode="prefill", tokens_per_s=length * 1e3)
        for length in (2048, 4096)
    ]
    unable = language_row("attention-360m", 1, 2048, None, suite="prefill", mode="prefill", status="unsupported")
    table = generation_section("prefill", pd.DataFrame([*rows, unable]))
    assert "| based-360m | 1 | 2048 | 4096 |" in table
    assert "attention" not in table


def test_the_published_ratio_is_the_page_s() -> None:
    rates = {model: generation for model, _, _, generation in PUBLISHED}
    assert f"{rates['based-1.3b']} against {rates['attention-1.3b']} tokens per millisecond" in PAGE
    assert f"{rates['based-360m'] / rates['attention-360m']:.2f} times" in PAGE


@pytest.mark.parametrize(
    ("page", "device", "name"),
    [
        *(("TWENTYFOUR", "h100", name) for name in GENERATION),
        *(("H200", "h200", name) for name in GENERATION if name != "prefill"),
    ],
)
def test_the_pages_are_what_the_committed_rows_give(page: str, device: str, name: str) -> None:
    committed = TABLES[f"generation-{name}"](ROOT / "results" / "reference" / device)
    assert section((ROOT / "docs" / f"{page}.md").read_text(), f"generation-{name}") == committed, (
        f"run: basedbench results table generation-{name} --results results/reference/{device} --write docs/{page}.md"
    )
