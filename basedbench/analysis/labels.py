"""What `--filter` searches in stored rows: labels that begin as those of a sweep."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd

from basedbench.errors import UserError, filter_of
from basedbench.store.schema import decode_json


def model_label(row: Mapping[Any, Any]) -> str:
    """A recall row's model at its learning rate: `based d_model=64 feature_dim=16 window=64 lr=0.01`."""
    given = decode_json({name: row.get(name) for name in ("config", "layer_options")})
    options = "".join(
        f" {name}={value}"
        for one in given.values()
        if isinstance(one, dict)  # not so where there is none
        for name, value in one.items()
    )
    return f"{row['mixer']} d_model={row['d_model']}{options} lr={row['learning_rate']:g}"


def labelled_like(kind: str, rows: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """The rows of a kind whose label a regular expression finds; UserError if it is malformed or finds nothing."""
    labels = LABELS[kind](rows)
    found = labels.map(filter_of(pattern).search).notna()
    if not found.any():
        what = {"recall": "runs", "throughput": "cases", "calibration": "ceilings"}[kind]
        raise UserError(f"--filter {pattern!r} finds none of {len(rows)} {what}, such as {labels.iloc[0]!r}.")
    return rows[found]


def _of_runs(rows: pd.DataFrame) -> pd.Series:
    """`based d_model=64 feature_dim=16 window=64 lr=0.01 seed=0`."""
    records: list[dict[Hashable, Any]] = rows.to_dict("records")
    return pd.Series([f"{model_label(row)} seed={row['seed']}" for row in records], index=rows.index, dtype="object")


def _of_times(rows: pd.DataFrame) -> pd.Series:
    """`taylor_attention/ours fwd bf16 16x2048`."""
    subject = rows["operator"].fillna(rows["model"]) if "model" in rows.columns else rows["operator"]
    shapes = rows["batch"].astype("Int64").astype(str) + "x" + rows["length"].astype("Int64").astype(str)
    return subject.fillna("-") + "/" + rows["contender"] + " " + rows["mode"] + " " + rows["dtype"] + " " + shapes


def _of_ceilings(rows: pd.DataFrame) -> pd.Series:
    """`product bf16`."""
    return (rows["ceiling"] + " " + rows["dtype"].fillna("")).str.strip()


LABELS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "recall": _of_runs,
    "throughput": _of_times,
    "calibration": _of_ceilings,
}
