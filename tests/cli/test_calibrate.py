"""`basedbench calibrate` as a user runs it, on the CPU."""

import json
from pathlib import Path

import pytest

from basedbench.store import load
from basedbench.timing.ceilings import stored_ceilings
from tests.cli.conftest import RunCli


def test_ceilings_are_measured_and_stored(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("calibrate", "--device", "cpu", "--seconds", "0.01", "--out", tmp_path, "--json")
    assert outcome.exit_code == 0
    printed = {row["ceiling"]: row for row in json.loads(outcome.stdout)}
    assert list(printed) == ["copy", "matmul_fp32", "matmul_bf16", "launch"]
    frame = load(tmp_path, "calibration").set_index("ceiling")
    for name, row in printed.items():
        assert row["fingerprint"]["cpu"] == row["device_name"]
        assert frame.loc[name, "median_ms"] == row["median_ms"] > 0
    copy, product = printed["copy"], printed["matmul_fp32"]
    assert copy["bytes_per_s"] == pytest.approx(2 * 2**27 / copy["median_ms"] * 1e3)
    assert product["flops_per_s"] == pytest.approx(2 * 1024**3 / product["median_ms"] * 1e3)
    half = printed["matmul_bf16"]
    assert half["flops"] in (2 * 1024**3, 2 * 256**3)  # the latter where it is emulated
    assert half["flops_per_s"] == pytest.approx(half["flops"] / half["median_ms"] * 1e3)
    assert stored_ceilings(tmp_path, "cpu") == {
        "copy": copy["bytes_per_s"],
        "matmul_fp32": product["flops_per_s"],
        "matmul_bf16": printed["matmul_bf16"]["flops_per_s"],
    }
    assert stored_ceilings(tmp_path, "cpu", threads=copy["config"]["threads"] + 1) == {}
    again = run_cli("calibrate", "--device", "cpu", "--seconds", "0.01", "--out", tmp_path)
    assert len(load(tmp_path, "calibration")) == 4
    assert all(len(line) <= 100 for line in again.stdout.splitlines())


def test_bad_input_is_one_sentence(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    many = ["--device", "cpu", "--threads", 10**9, "--out", tmp_path / "new"]
    for arguments in (["--device", "tpu"], ["--device", "cpu", "--out", tmp_path / "file"], many):
        outcome = run_cli("calibrate", *arguments)
        assert outcome.exit_code == 2
        assert outcome.stderr.startswith("Error: ")
        assert len(outcome.stderr.splitlines()) == 1
