"""Rows of whole language models as comparable numbers: named, sorted into families and sizes, rates with intervals.

A model whose state does not grow with the context costs the same at every context. `at_place` therefore gives, for a
recurrent model, the row at the nearest context that was timed; the state, measured at two contexts or more, says
which models these are.
"""

import json
import re
from typing import Any

import pandas as pd

from basedbench.config.models import model_words
from basedbench.errors import UserError

FAMILIES = ("attention", "based", "mamba", "mamba2")
_PRESET = re.compile(r"(?P<family>.+?)-(?P<size>[\d.]+[mb])(?:-(?P<variant>.+))?")


def language_rows(frame: pd.DataFrame, mode: str) -> pd.DataFrame:
    """The rows of whole models in this mode, with columns name, family, size, value, low and high (tokens per second).

    Sorted by family, size, name, batch and context. A failure has no value. UserError if there are none.
    """
    rows = frame[frame["operator"].isna() & frame["model"].notna() & (frame["mode"] == mode)]
    if rows.empty:
        suite = "generation" if mode == "generation" else "prefill"
        raise UserError(
            f"there are no rows of whole models in mode {mode}; `basedbench throughput --suite {suite}` makes them."
        )
    return with_names(rows)


def with_names(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of whole models with what `language_rows` adds."""
    parts = [preset_parts(model) for model in rows["model"]]
    ok = rows["status"] == "ok"
    times = rows[["ci_low_ms", "ci_high_ms"]].astype("float64")
    times = times.where((times > 0).to_numpy() & ok.to_numpy()[:, None])
    rate = rows["tokens_per_s"].astype("float64").where(ok)
    work = rate * rows["median_ms"].astype("float64")
    named = rows.assign(
        name=[model_name(row) for row in rows.to_dict("records")],
        family=[family for family, _, _ in parts],
        size=[size for _, size, _ in parts],
        value=rate,
        low=work / times["ci_high_ms"],
        high=work / times["ci_low_ms"],
    )
    order = {name: index for index, name in enumerate(FAMILIES)}
    named = named.assign(_order=named["family"].map(lambda name: order.get(name, len(order))))
    return named.sort_values(["_order", "size", "name", "batch", "length"], kind="stable").drop(columns="_order")


def preset_parts(model: str) -> tuple[str, str, str]:
    """(family, size, variant): `attention-1.3b-h64` is ("attention", "1.3b", "h64")."""
    match = _PRESET.fullmatch(model)
    return (match["family"], match["size"], match["variant"] or "") if match else (model, "", "")


def model_name(row: Any) -> str:
    """`attention-1.3b-h64 by=sdpa-flash`."""
    config = json.loads(row["config"]) if isinstance(row["config"], str) else row["config"] or {}
    return " ".join(model_words(row["model"], config, row["contender"]))


def recurrent(rows: pd.DataFrame) -> set[str]:
    """The names of models whose state is the same at all of two or more contexts that were timed."""
    known = rows[rows["state_bytes"].notna() & rows["value"].notna()]
    found = set()
    for name, group in known.groupby("name"):
        if group["length"].nunique() > 1 and group["state_bytes"].nunique() == 1:
            found.add(str(name))
    return found


def at_place(rows: pd.DataFrame, batch: int, length: int) -> pd.DataFrame:
    """One row per model at this batch and context, failures included; of recurrent models the nearest in context."""
    here = rows[rows["batch"] == batch]
    still = here["name"].isin(recurrent(rows))
    exact = here[~still & (here["length"] == length)]
    distance = (here["length"].astype("float64") / length).map(lambda ratio: max(ratio, 1 / ratio))
    nearest = here[still].assign(_distance=distance[still]).sort_values("_distance", kind="stable")
    nearest = nearest.drop_duplicates("name").drop(columns="_distance")
    return pd.concat([exact, nearest]).sort_index()
