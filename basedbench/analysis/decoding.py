"""Decode rates of recall models, from throughput rows, as a column of recall rows."""

import pandas as pd

from basedbench.errors import UserError

COLUMN = "decode_tokens_per_s"
_KEY = ["model", "config"]


def with_decode_rate(recall: pd.DataFrame, throughput: pd.DataFrame, batch: int | None = None) -> pd.DataFrame:
    """The recall rows, or points, with `decode_tokens_per_s`, that of the same layers, width and options, as `_low` and
    `_high` its interval, and the `decode_batch`: the one asked for, else the largest that was timed.

    Rows of models that were not timed have NaN. UserError if none was, or none at this batch.
    """
    timed = throughput[(throughput["mode"] == "decode") & throughput["model"].notna() & (throughput["status"] == "ok")]
    if batch is not None:
        batches = sorted(timed["batch"].unique())
        if len(timed) and batch not in batches:
            raise UserError(f"no model was decoded at batch {batch}, only at {', '.join(map(str, batches))}.")
        timed = timed[timed["batch"] == batch]
    best = timed.sort_values("batch").drop_duplicates(_KEY, keep="last").set_index(_KEY)
    names = recall["layer_mixers"] + " d_model=" + recall["d_model"].astype("int64").astype(str)
    found = best.reindex(pd.MultiIndex.from_arrays([names, recall["config"]], names=_KEY))
    rate = found["tokens_per_s"].astype("float64")
    if rate.isna().all():
        raise UserError(
            f"no decode times of these models; `basedbench throughput --models {recall['suite'].iloc[0]}` takes them."
        )
    times = found[["median_ms", "ci_low_ms", "ci_high_ms"]].astype("float64")
    columns = {
        COLUMN: rate,
        f"{COLUMN}_low": rate * times["median_ms"] / times["ci_high_ms"],
        f"{COLUMN}_high": (rate * times["median_ms"] / times["ci_low_ms"]).where(times["ci_low_ms"] > 0),
        "decode_batch": found["batch"].astype("float64"),
    }
    return recall.assign(**{name: values.to_numpy() for name, values in columns.items()})


def decoding_note(points: pd.DataFrame, throughput: pd.DataFrame) -> str:
    """How the models were decoded, in one line for the figure."""
    timed = throughput[(throughput["mode"] == "decode") & throughput["model"].notna() & (throughput["status"] == "ok")]
    timed = timed[timed["batch"].isin(points["decode_batch"].dropna())]
    parts = [
        "/".join(sorted(timed["device_name"].unique())),
        f"batch {_span(timed['batch'])}",
        f"behind {_span(timed['length'])} tokens",
        "/".join(sorted(timed["dtype"].unique())),
    ]
    return f"Decoded on {', '.join(parts)}; level bars: 95% intervals."


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
