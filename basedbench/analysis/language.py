"""Rows of whole language models as comparable numbers: named, sorted into families and sizes, rates with intervals.

A model whose state does not grow with the context costs the same at every context. `at_place` therefore gives, for a
recurrent model, the row at the nearest context that was timed; the state, measured at two contexts or more, says
which models these are.
"""

import json
import re
from typing import Any

import pandas as pd

from basedbench.config.models import changes
from basedbench.errors import UserError, filter_of

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
    changed = [" ".join(changes(_config(text))) for text in rows["config"]]
    rows = rows.assign(changes=changed)
    named = rows.assign(
        name=_names(rows),
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


def _names(rows: pd.DataFrame) -> list[str]:
    """`attention-1.3b-h64 by=sdpa-flash`; with what was changed in the preset where that differs between rows.

    With the dtype and the device, too, where there are several: no line of a figure goes from one to another.
    """
    several = rows.groupby("model")["changes"].nunique()
    apart = [name for name in ("dtype", "device_name") if rows[name].nunique() > 1]
    changed = rows["changes"].where(rows["model"].map(several) > 1, "")
    by = rows["contender"].map(lambda name: "" if name == "ours" else f"by={name}")
    words = zip(rows["model"], changed, by, *(rows[name] for name in apart), strict=True)
    return [" ".join(filter(None, one)) for one in words]


def _config(text: Any) -> dict[str, Any]:
    return dict(json.loads(text)) if isinstance(text, str) else dict(text or {})


def recurrent(rows: pd.DataFrame) -> set[str]:
    """The names of models whose state is the same at all of two or more contexts that were timed."""
    known = rows[rows["state_bytes"].notna() & rows["value"].notna()]
    found = set()
    for name, group in known.groupby("name"):
        if group["length"].nunique() > 1 and group["state_bytes"].nunique() == 1:
            found.add(str(name))
    return found


def fastest(rows: pd.DataFrame) -> pd.DataFrame:
    """Each model at its fastest implementation in every place, named without it; where none has a time, one that is."""
    named = rows.assign(name=_names(rows.assign(contender="ours")), _other=rows["status"] != "oom")
    ranked = named.sort_values(["value", "_other"], ascending=[False, True], na_position="last", kind="stable")
    kept = ranked.drop_duplicates(["name", "batch", "length"]).index
    return named[named.index.isin(kept)].drop(columns="_other")


def usual(rows: pd.DataFrame, column: str, preferred: int) -> int:
    """The value of a column (batch, length) that a figure is drawn at: the preferred one, else what most rows have."""
    counts = rows.loc[rows["value"].notna(), column].value_counts()
    counts = counts if len(counts) else rows[column].value_counts()
    if preferred in counts.index:
        return preferred
    return int(max(counts.index, key=lambda value: (counts[value], value)))


def at_place(rows: pd.DataFrame, batch: int, length: int) -> pd.DataFrame:
    """One row per model at this batch and context, failures included; of recurrent models the nearest in context."""
    here = rows[rows["batch"] == batch]
    still = here["name"].isin(recurrent(rows))
    exact = here[~still & (here["length"] == length)]
    distance = (here["length"].astype("float64") / length).map(lambda ratio: max(ratio, 1 / ratio))
    nearest = here[still].assign(_distance=distance[still]).sort_values("_distance", kind="stable")
    return here[here.index.isin([*exact.index, *nearest.drop_duplicates("name").index])]


def named_like(rows: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """The rows whose name a regular expression finds; UserError if it is malformed or finds nothing."""
    found = rows["name"].map(filter_of(pattern).search).notna()
    if not found.any():
        raise UserError(f"--filter {pattern!r} finds none of the models {', '.join(dict.fromkeys(rows['name']))}.")
    return rows[found]


def check_place(rows: pd.DataFrame, batch: int, length: int) -> None:
    """UserError unless there are rows at this batch and rows at this context."""
    for option, column, value in (("--batch", "batch", batch), ("--context", "length", length)):
        known = sorted(rows[column].unique())
        if value not in known:
            raise UserError(f"{option} {value}: nothing was timed there, only at {', '.join(map(str, known))}.")


def conditions(rows: pd.DataFrame) -> str:
    """What a figure of these rows rests on, in one line."""
    devices, dtypes = ("/".join(sorted(rows[name].unique())) for name in ("device_name", "dtype"))
    graph = "in a CUDA graph" if rows["graph"].fillna(False).astype(bool).any() else "no graph"
    several = (rows.groupby("name")["contender"].nunique() > 1).any()
    best = ["each model at its fastest implementation"] if several else []
    still = ["recurrent models at the nearest context that was timed"] if recurrent(rows) else []
    changed = dict.fromkeys(zip(rows["model"], rows["changes"], strict=True))
    told = [f"{model} with {words}" for model, words in changed if words and words not in " ".join(rows["name"])]
    return "; ".join([f"{devices}, {dtypes}, {graph}; medians, bars: 95% intervals", *best, *still, *told]) + "."
