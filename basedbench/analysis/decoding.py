"""Decode rates of recall models, from throughput rows, as a column of recall rows."""

import pandas as pd

from basedbench.errors import UserError

COLUMN = "decode_tokens_per_s"
_KEY = ["model", "config"]


def with_decode_rate(recall: pd.DataFrame, throughput: pd.DataFrame) -> pd.DataFrame:
    """The recall rows with `decode_tokens_per_s`: that of the same layers, width and options, at the largest batch.

    Rows of models that were not timed have NaN. UserError if none was.
    """
    timed = throughput[(throughput["mode"] == "decode") & throughput["model"].notna() & (throughput["status"] == "ok")]
    best = timed.sort_values("batch").drop_duplicates(_KEY, keep="last").set_index(_KEY)["tokens_per_s"]
    names = recall["layer_mixers"] + " d_model=" + recall["d_model"].astype("int64").astype(str)
    rates = [best.get(key, float("nan")) for key in zip(names, recall["config"], strict=True)]
    if pd.isna(pd.Series(rates, dtype="float64")).all():
        raise UserError(
            f"no decode times of these models; `basedbench throughput --models {recall['suite'].iloc[0]}` takes them."
        )
    return recall.assign(**{COLUMN: rates})
