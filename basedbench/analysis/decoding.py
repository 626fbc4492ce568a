"""Decode rates of recall models, from throughput rows, as a column of recall rows."""

import json
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from basedbench.config import suite_argument
from basedbench.errors import UserError
from basedbench.sources import plugin_options

COLUMN = "decode_tokens_per_s"
_KEY = ["model", "config"]
_NAMES = ["dtype", "device_name", "contender_version"]
_TAKEN = ["tokens_per_s", "median_ms", "ci_low_ms", "ci_high_ms", "batch", "length", *_NAMES]


def command_for(recall: pd.DataFrame, more: str = "") -> str:
    """The command that times the decode steps of these models, `more` at its end; one for each suite."""
    commands = []
    for suite, rows in recall.groupby("suite", sort=False):
        sources: list[str] = list(rows["mixer_source"].dropna().unique()) if "mixer_source" in rows else []
        files = "".join(dict.fromkeys(plugin_options(source) for source in sources))
        commands.append(f"`basedbench throughput --models {suite_argument(str(suite))}{files}{more}`")
    return f"{' and '.join(commands)} {'takes' if len(commands) == 1 else 'take'} them"


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
    found = _rows_of(recall, timed.sort_values("batch", kind="stable"))
    rate = found["tokens_per_s"].astype("float64")
    if rate.isna().all():
        raise UserError(f"no decode times of these models; {command_for(recall)}.")
    times = found[["median_ms", "ci_low_ms", "ci_high_ms"]].astype("float64")
    columns = {
        COLUMN: rate,
        f"{COLUMN}_low": rate * times["median_ms"] / times["ci_high_ms"],
        f"{COLUMN}_high": (rate * times["median_ms"] / times["ci_low_ms"]).where(times["ci_low_ms"] > 0),
        **{f"decode_{name}": found[name].astype("float64") for name in ("batch", "length")},
        **{f"decode_{name}": found[name] for name in _NAMES},
    }
    return recall.assign(**{name: values.to_numpy() for name, values in columns.items()})


def decoded_name(layer_mixers: str, d_model: int, layer_options: Mapping[str, object]) -> str:
    """What throughput rows call a recall suite's model: `base_conv+based d_model=64`."""
    options = "".join(f" {name}={value}" for name, value in layer_options.items())
    return f"{layer_mixers} d_model={d_model}{options}"


def decoding_note(points: pd.DataFrame) -> str:
    """How the models were decoded, in one line for the figure."""
    timed = points[points["decode_batch"].notna()]
    parts = [
        "/".join(sorted(timed["decode_device_name"].unique())),
        f"batch {_span(timed['decode_batch'])}",
        f"behind {_span(timed['decode_length'])} tokens",
        "/".join(sorted(timed["decode_dtype"].unique())),
    ]
    return f"Decoded on {', '.join(parts)}; level bars: 95% intervals."


def _rows_of(recall: pd.DataFrame, timed: pd.DataFrame) -> pd.DataFrame:
    """The last of the timed rows of each model: of its own suite, whose length it has, else of any."""
    wanted = recall[["suite", "config"]].reset_index(drop=True)
    wanted = wanted.assign(model=[_name(row) for row in recall.to_dict("records")])
    wanted = wanted.assign(size=recall["parameters"].to_numpy() if "parameters" in recall.columns else float("nan"))
    found = [_last(wanted, timed, keys) for keys in (["suite", *_KEY], _KEY)]
    return found[0].where(found[0]["tokens_per_s"].notna(), found[1])


def _last(wanted: pd.DataFrame, timed: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Of rows with as many parameters, where both say: with another vocabulary it is another model."""
    both = wanted.rename_axis("place").reset_index().merge(timed[[*keys, "parameters", *_TAKEN]], on=keys)
    other = both["size"].notna() & both["parameters"].notna() & (both["size"] != both["parameters"])
    return both[~other].drop_duplicates("place", keep="last").set_index("place")[_TAKEN].reindex(wanted.index)


def _name(row: Mapping[Hashable, Any]) -> str:
    options = row.get("layer_options")
    return decoded_name(
        row["layer_mixers"], int(row["d_model"]), json.loads(options) if isinstance(options, str) else {}
    )


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
