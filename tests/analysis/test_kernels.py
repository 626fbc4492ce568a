"""The kernel table: made from rows, and the README's is what the committed rows give."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from basedbench.analysis.kernels import NOTHING, kernel_cases, kernel_table
from basedbench.analysis.markdown import replace_section, section
from basedbench.cli.documents import TABLES
from basedbench.errors import UserError

ROOT = Path(__file__).parents[2]


def row(contender: str, milliseconds: float = float("nan"), **changes: Any) -> dict[str, Any]:
    return {
        "suite": "kernels", "operator": "taylor_attention", "contender": contender, "mode": "fwd", "dtype": "bf16",
        "batch": 16, "length": 2048, "heads": 16, "key_dim": 16, "value_dim": 64, "config": "{}", "cache": "cold",
        "status": "ok", "median_ms": milliseconds, "ci_low_ms": 0.99 * milliseconds, "ci_high_ms": 1.01 * milliseconds,
        "flops": 1e9, "bandwidth_fraction": 0.5, "flops_fraction": 0.25, "device_name": "NVIDIA H200",
        "fingerprint": '{"gpu": "NVIDIA H200"}', "created_at": "2026-11-27T06:32:00+00:00", "code_version": "0.1+gabc",
    } | changes  # fmt: skip


def test_the_fastest_peer_at_the_same_place_stands_beside_ours() -> None:
    frame = pd.DataFrame(
        [
            row("ours", 0.2),
            row("fla-parallel", 0.9),
            row("fla-fused-chunk", 0.6),
            row("fla-fused-chunk", 0.01, length=512),
            row("broken", status="incorrect"),
            row("sdpa-flash", 0.05, operator="attention"),
        ]
    )
    (case,) = kernel_cases(frame).to_dict("records")
    assert (case["peer"], case["peer_ms"]) == ("fla-fused-chunk", 0.6)
    assert case["ratio"] == pytest.approx(3)
    assert (case["ceiling"], case["ceiling_fraction"]) == ("bandwidth", 0.5)
    table = kernel_table(frame).splitlines()
    assert table[0] == "NVIDIA H200, suite `kernels`, bf16:"
    assert table[-1] == (
        "| taylor_attention | B16 L2048 H16 K16 V64 | forward | 0.2 ms (0.198 ms - 0.202 ms) | 50 % bandwidth "
        "| fla-fused-chunk | 0.6 ms | 3.00 |"
    )


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({"created_at": "2026-11-27T06:50:00+00:00"}, "3.00"),
        ({"created_at": "2026-11-27T09:00:00+00:00"}, "3.00 *"),
        ({"code_version": "0.1+gdef"}, "3.00 *"),
    ],
)
def test_a_ratio_to_a_row_of_another_run_is_marked(changes: dict[str, Any], ratio: str) -> None:
    frame = pd.DataFrame([row("ours", 0.2), row("fla-parallel", 0.6, **changes)])
    assert kernel_table(frame).splitlines()[-1].endswith(f"| {ratio} |")


def test_one_row_for_each_of_our_cases_in_the_order_of_modes() -> None:
    shapes = [{"mode": "decode"}, {"mode": "fwd_bwd"}, {"mode": "fwd", "length": 8192}, {"mode": "fwd"}]
    frame = pd.DataFrame([row("ours", 1.0, **shape) for shape in shapes])
    assert [line.split(" | ")[2] for line in kernel_table(frame).splitlines()[4:]] == [
        "forward", "forward", "forward + backward", "decode step"
    ]  # fmt: skip


def test_rows_of_whole_models_beside_them_do_not_turn_sizes_into_fractions() -> None:
    model = {"suite": "generation", "operator": None, "model": "based-1.3b", "heads": None, "key_dim": None}
    frame = pd.DataFrame(
        [row("ours", 1.0), row("ours", 1.0, operator="selective_scan", heads=None), row("ours") | model]
    )
    shapes = [line.split(" | ")[1] for line in kernel_table(frame).splitlines()[4:]]
    assert shapes == ["B16 L2048 N16 D64", "B16 L2048 H16 K16 V64"]


def test_what_is_missing_is_said() -> None:
    frame = pd.DataFrame(
        [row("ours", 0.05, flops_fraction=None, bandwidth_fraction=None), row("ours", status="oom", length=8192)]
    )
    lines = kernel_table(frame).splitlines()
    assert lines[-2].endswith("| forward | 50 us (49.5 us - 50.5 us) | - | - | - | - |")
    assert lines[-1].endswith("| forward | oom | - | - | - | - |")


@pytest.mark.parametrize("changes", [{"suite": "mine"}, {"contender": "fla"}, {"fingerprint": '{"gpu": null}'}])
def test_without_our_rows_from_a_gpu_there_is_a_sentence(changes: dict[str, Any]) -> None:
    assert kernel_table(pd.DataFrame([row("ours", 1.0) | changes])) == NOTHING
    assert kernel_table(None) == NOTHING


def test_options_are_part_of_the_shape() -> None:
    frame = pd.DataFrame([row("ours", 1.0, operator="sliding_window", config='{"window": 64}')])
    assert "| sliding_window | B16 L2048 H16 K16 V64 window 64 |" in kernel_table(frame)


def test_the_largest_case_of_each_operator_and_mode() -> None:
    cases = [
        row("ours", 1.0),
        row("ours", 2.0, length=8192, flops=4e9),
        row("ours", length=32768, flops=16e9, status="oom"),
        row("ours", 3.0, mode="decode", operator="attention", length=512),
    ]
    shapes = [line.split(" | ")[1:3] for line in kernel_table(pd.DataFrame(cases), largest=True).splitlines()[4:]]
    assert shapes == [["B16 L512 H16 K16 V64", "decode step"], ["B16 L8192 H16 K16 V64", "forward"]]


def test_a_section_is_replaced_and_nothing_else() -> None:
    text = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n"
    new = replace_section(text, "a", "new\nlines")
    assert new == "before\n<!-- a:begin -->\nnew\nlines\n<!-- a:end -->\nafter\n"
    assert section(new, "a") == "new\nlines"
    with pytest.raises(UserError, match="b:begin"):
        replace_section(text, "b", "")


@pytest.mark.parametrize(("name", "document"), [("largest-kernels", "README.md"), ("kernels", "docs/KERNELS.md")])
def test_the_tables_of_the_documents_are_what_the_committed_rows_give(name: str, document: str) -> None:
    committed = TABLES[name](ROOT / "results" / "reference" / "h200")
    assert section((ROOT / document).read_text(), name) == committed, (
        f"run: basedbench results table {name} --results results/reference/h200 --write {document}"
    )


def test_a_mode_of_another_version_has_its_own_name() -> None:
    assert "| backward |" in kernel_table(pd.DataFrame([row("ours", 0.2, mode="backward")]))
