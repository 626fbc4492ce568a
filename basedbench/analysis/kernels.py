"""The kernel tables: our kernels beside their best peer and the machine's ceilings, as Markdown."""

import json
from collections.abc import Hashable
from typing import Any

import pandas as pd

from basedbench.analysis.markdown import table

SUITE = "kernels"
OURS = "ours"
NOTHING = "No times of the suite `kernels` from a GPU are in these results; `basedbench throughput` on one takes them."
SAME_RUN_S = 3600.0  # the longest that a part of the suite takes by one command
APART = " *"
COLUMNS = ("operator", "shape", "mode", "ours (95 % interval)", "of ceiling", "best peer", "its time", "ratio")
_PLACE = ["mode", "dtype", "batch", "length", "heads", "key_dim", "value_dim", "config", "cache", "device_name"]
_MODES = {"fwd": "forward", "fwd_bwd": "forward + backward", "decode": "decode step"}
# What an operator's axes are called; one that it does not have is 1, and is left out.
_LETTERS = {"batch": "B", "length": "L", "heads": "H", "key_dim": "K", "value_dim": "V"}
_OWN_LETTERS = {
    "selective_scan": {"key_dim": "N", "value_dim": "D"},
    "ssd": {"key_dim": "N", "value_dim": "P"},
    "wkv4": {"value_dim": "D"},
    "short_conv": {"value_dim": "D"},
    "linear_cross_entropy": {"key_dim": "D"},
}


def kernel_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """Our rows of the suite `kernels`, in the order of operators, modes and shapes, with the best peer of each.

    New columns: `peer`, `peer_ms` (the fastest other contender of the operator at the same place) and `ratio` (its
    time over ours), missing where there is none; `apart` (the two are not of one run, by code or hour: another card, or
    another state of it); `ceiling` (bandwidth or FLOPs, the larger share), `ceiling_fraction`.
    """
    rows = frame[(frame["suite"] == SUITE) & frame["operator"].notna()]
    peers = rows[(rows["contender"] != OURS) & (rows["status"] == "ok")]
    places = ["operator", *_PLACE]
    of_peer = {"contender": "peer", "median_ms": "peer_ms", "created_at": "_at", "code_version": "_code"}
    best = peers.sort_values("median_ms").drop_duplicates(places)[[*places, *of_peer]].rename(columns=of_peer)
    ours = rows[rows["contender"] == OURS].merge(best, how="left", on=places)
    order = {name: index for index, name in enumerate(_MODES)}
    ours = ours.assign(_order=ours["mode"].map(order))
    ours = ours.sort_values(["device_name", "operator", "_order", "batch", "length", "key_dim", "value_dim", "config"])
    fractions = ours[["bandwidth_fraction", "flops_fraction"]].astype("float64").fillna(0.0)
    own_time, other_time = (pd.to_datetime(ours[name], utc=True) for name in ("created_at", "_at"))
    seconds = (own_time - other_time).dt.total_seconds().abs()
    return ours.assign(
        apart=ours["peer"].notna() & ((seconds > SAME_RUN_S) | (ours["code_version"] != ours["_code"])),
        ratio=ours["peer_ms"] / ours["median_ms"],
        ceiling=["bandwidth" if bytes_ >= flops else "FLOPs" for bytes_, flops in fractions.to_numpy()],
        ceiling_fraction=fractions.max(axis=1),
    ).drop(columns=["_order", "_at", "_code"])


def kernel_table(frame: pd.DataFrame | None, *, largest: bool = False) -> str:
    """Markdown: a table for each GPU, or a sentence that there is nothing yet.

    `largest` keeps one row of each operator and mode: the case with the most work, of those that have a time.
    """
    cases = None if frame is None else kernel_cases(frame[_on_a_gpu(frame)])
    if cases is None or cases.empty:
        return NOTHING
    if largest:
        cases = _largest(cases)
    parts = []
    for device, rows in cases.groupby("device_name", sort=False):
        lines = table(COLUMNS, [_cells(row) for row in rows.to_dict("records")])
        parts.append(f"{device}, suite `{SUITE}`, {_shared_dtype(rows)}:\n\n{lines}")
    return "\n\n".join(parts)


def _largest(cases: pd.DataFrame) -> pd.DataFrame:
    timed = cases[cases["status"] == "ok"]
    most = timed.sort_values("flops", ascending=False, kind="stable").groupby(["device_name", "operator", "mode"])
    return cases[cases.index.isin(most.head(1).index)]


def _on_a_gpu(frame: pd.DataFrame) -> pd.Series:
    """Rows that a CUDA device took: the fingerprint names its driver and such under `gpu`."""
    return frame["fingerprint"].map(lambda text: bool(_object(text).get("gpu")))


def _cells(row: dict[Hashable, Any]) -> list[str]:
    mode = _MODES.get(row["mode"], row["mode"])  # another version may have more
    shape = _shape(row)
    if row["status"] != "ok":
        return [row["operator"], shape, mode, str(row["status"]), "-", "-", "-", "-"]
    time = f"{_time(row['median_ms'])} ({_time(row['ci_low_ms'])} - {_time(row['ci_high_ms'])})"
    share = f"{100 * row['ceiling_fraction']:.0f} % {row['ceiling']}" if row["ceiling_fraction"] else "-"
    if pd.isna(row["peer_ms"]):
        return [row["operator"], shape, mode, time, share, "-", "-", "-"]
    ratio = f"{row['ratio']:.2f}{APART if row['apart'] else ''}"
    return [row["operator"], shape, mode, time, share, row["peer"], _time(row["peer_ms"]), ratio]


def _shape(row: dict[Hashable, Any]) -> str:
    """`B16 L2048 H16 K16 V64 window 64`; a decode step's length counts where the step reads all of it."""
    letters = _LETTERS | _OWN_LETTERS.get(row["operator"], {})
    context = row["mode"] != "decode" or row["operator"] == "attention"
    names = [name for name in letters if context or name != "length"]
    sizes = {name: int(row[name]) for name in names if not pd.isna(row[name])}  # floats beside rows of whole models
    axes = [f"{letters[name]}{size}" for name, size in sizes.items() if name in ("batch", "length") or size != 1]
    options = [f"{name} {value}" for name, value in _object(row["config"]).items() if value not in (None, 1)]
    return " ".join([*axes, *options])


def _time(milliseconds: float) -> str:
    """`1.234 ms`, `45.6 us`."""
    return f"{milliseconds * 1e3:.3g} us" if milliseconds < 0.1 else f"{milliseconds:.4g} ms"


def _shared_dtype(rows: pd.DataFrame) -> str:
    return " and ".join(sorted(rows["dtype"].unique()))


def _object(text: Any) -> dict[str, Any]:
    if isinstance(text, dict):
        return text
    return dict(json.loads(text)) if isinstance(text, str) and text else {}
