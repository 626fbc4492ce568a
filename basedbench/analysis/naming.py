"""Short names for families and points: what stands in legends, beside markers and in tables."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

_TITLES = {"mamba2": "Mamba-2", "rwkv7": "RWKV-7", "gla": "GLA", "h3": "H3", "delta_net": "DeltaNet"}
_TITLES |= {"gated_delta_net": "Gated DeltaNet", "base_conv": "BaseConv", "kda": "KDA"}
_TITLES |= {"retnet": "RetNet", "rwkv4": "RWKV-4", "wkv4": "WKV-4", "relu": "ReLU", "cosformer": "CosFormer"}
_TITLES |= {f"taylor{order}": f"Taylor {order}" for order in (1, 2, 3)}
_SIZES = {"feature_dim": "f", "window": "w", "d_state": "N"}  # they set the state's size, so they are always named
_LETTERS = _SIZES | {"heads": "h", "expand": "e", "layers": "layers ", "epochs": "epochs ", "learning_rate": "lr "}
_VARIED = ("layers", "layer_mixers", "init", "precision", "epochs", "batch_size", "weight_decay")
_MORE = ((), ("suite",), ("learning_rate",), ("suite", "learning_rate"))  # where that does not tell points apart


def family_title(name: str) -> str:
    """`sliding_window` -> `Sliding window`, `linear_attention/relu` -> `Linear attention, ReLU`."""
    words = [_TITLES.get(part, part[:1].upper() + part[1:]).replace("_", " ") for part in name.split("/")]
    return ", ".join(words)


def point_labels(points: pd.DataFrame, always_width: bool = False) -> pd.Series:
    """A label such as `d64 f16` per point: what tells it from the others of its family, and what sets its state size.

    d_model is left out where the whole family shares it and something else is named, unless `always_width`; the
    suite, the learning rate or both are added where nothing else tells points apart.
    """
    labels: dict[Hashable, str] = {}
    for _, family in points.groupby("family", sort=False):
        for more in _MORE:
            texts = _family_labels(family, always_width, (*_VARIED, *more))
            if len(set(texts)) == len(texts):
                break
        labels |= zip(family.index, texts, strict=True)
    return pd.Series(labels, dtype="object").reindex(points.index)


def _family_labels(family: pd.DataFrame, always_width: bool, columns: Sequence[str]) -> list[str]:
    options = [_options(row, columns) for row in family.to_dict("records")]
    names = dict.fromkeys(name for one in options for name in one)
    varied = {name for name in names if len({str(one.get(name)) for one in options}) > 1}
    named = [name for name in names if name in varied or (name in _SIZES and options[0].get(name))]
    width = always_width or not named or family["d_model"].nunique() > 1
    labels = []
    for d_model, one in zip(family["d_model"], options, strict=True):
        parts = [f"d{d_model:g}"] if width else []
        labels.append(" ".join(parts + [_part(name, one[name]) for name in named if one.get(name) is not None]))
    return labels


def _options(row: Mapping[Hashable, Any], columns: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("config", "layer_options"):
        options |= json.loads(row[name]) if isinstance(row.get(name), str) else {}
    return options | {name: row[name] for name in columns if name in row and not pd.isna(row[name])}


def _part(name: str, value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    if name in _LETTERS:
        return _LETTERS[name] + text
    return text if isinstance(value, str) else f"{name}={text}"
