"""Synthetic rows with the columns of stored ones: the published models with a few runs each, and a set of timings."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from basedbench.analysis import published

SLICES = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
OPTIONS = {"f": "feature_dim", "w": "window"}


def recall_row(family: str, d_model: int, config: dict[str, Any], accuracy: float, **more: Any) -> dict[str, Any]:
    falling = np.linspace(1.3, 0.7, len(SLICES)) * accuracy
    return {
        "suite": "figure2",
        "family": family,
        "mixer": family,
        "config": json.dumps(config),
        "d_model": d_model,
        "layers": 2,
        "learning_rate": 0.01,
        "seed": 0,
        "precision": "fp32",
        "epochs": 32,
        "status": "ok",
        "accuracy": accuracy,
        "accuracy_by_slice": {
            f"{length}x{pairs}": min(value, 1.0) for (length, pairs), value in zip(SLICES, falling, strict=True)
        },
        "state_bytes": 4096,
        "state_bytes_zoology": 4096,
        "parameters": 8192 * d_model,
        "train_s": 8.0,
        "vocab_size": 8192,
        "select_split": "test",
        "validation_accuracy": np.nan,
    } | more


@pytest.fixture(scope="session")
def make_row() -> Callable[..., dict[str, Any]]:
    return recall_row


@pytest.fixture(scope="session")
def recall() -> pd.DataFrame:
    """The models of the printed figure whose shapes are known, two learning rates and three seeds each."""
    random, rows = np.random.default_rng(0), []
    for model in published().dropna(subset=["label", "state_bytes_paper"]).to_dict("records"):
        words = model["label"].split()
        width = next((int(word[1:]) for word in words if word[0] == "d"), 128)
        config = {OPTIONS[word[0]]: int(word[1:]) for word in words if word[0] in OPTIONS}
        for rate, loss in ((0.01, 0.0), (0.001, 0.2)):
            for seed in range(3):
                accuracy = float(np.clip(model["accuracy"] - loss + random.normal() * 0.01, 0, 1))
                size = int(model["state_bytes_zoology"])
                rows.append(
                    recall_row(
                        model["family"], width, config, accuracy, learning_rate=rate, seed=seed,
                        state_bytes=size, state_bytes_zoology=size,
                    )
                )  # fmt: skip
    return pd.DataFrame(rows)


def timing_row(contender: str, length: int, median_ms: float | None, **more: Any) -> dict[str, Any]:
    values = {
        "suite": "kernels",
        "operator": "taylor_attention",
        "contender": contender,
        "mode": "fwd",
        "dtype": "bf16",
    }
    values |= {"batch": 2, "length": length, "heads": 16, "key_dim": 16, "value_dim": 64, "config": "{}"}
    values |= {"status": "ok" if median_ms else "oom", "reason": None, "cache": "cold", "device_name": "NVIDIA H200"}
    values |= {"median_ms": median_ms, "ci_low_ms": None, "ci_high_ms": None, "tokens_per_s": None, "baseline": "ours"}
    if median_ms:
        values |= {"ci_low_ms": 0.98 * median_ms, "ci_high_ms": 1.03 * median_ms}
        values |= {"tokens_per_s": 2 * length / median_ms * 1e3}
    return values | more


@pytest.fixture(scope="session")
def throughput_rows() -> pd.DataFrame:
    """Two modes; `sdpa` is quadratic, `reference` runs out of memory at the two longest, `fla` is never there."""
    rows = []
    for mode, factor in (("fwd", 1.0), ("fwd_bwd", 3.0)):
        for length in (1024, 2048, 4096, 8192, 16384):
            rows.append(timing_row("ours", length, factor * length * 1e-5, mode=mode))
            rows.append(timing_row("sdpa", length, factor * length**2 * 1e-8, mode=mode))
            rows.append(timing_row("reference", length, factor * length * 1e-4 if length < 8192 else None, mode=mode))
            rows.append(timing_row("fla", length, None, mode=mode, status="unsupported", reason="not installed"))
    return pd.DataFrame(rows)


def language_row(model: str, batch: int, length: int, median_ms: float | None, **more: Any) -> dict[str, Any]:
    """A whole model's row; without a time it ran out of memory."""
    attention = model.startswith("attention")
    values: dict[str, Any] = timing_row("sdpa-flash" if attention else "ours", length, None)
    values |= {"suite": "generation", "operator": None, "model": model, "mode": "generation", "batch": batch}
    values |= {"heads": None, "key_dim": None, "value_dim": None, "cache": "hot", "graph": True, "largest_batch": None}
    values |= {"config": json.dumps({"preset": model}), "state_bytes": None, "baseline": "attention-360m/sdpa-flash"}
    if median_ms:
        values |= {
            "status": "ok",
            "median_ms": median_ms,
            "ci_low_ms": 0.99 * median_ms,
            "ci_high_ms": 1.01 * median_ms,
        }
        values |= {"tokens_per_s": batch / median_ms * 1e3, "largest_batch": 1000 if attention else 9000}
        values |= {"state_bytes": 1000 * length if attention else 5000}
    return values | more


@pytest.fixture(scope="session")
def language_frame() -> pd.DataFrame:
    """Two sizes; attention slows with context and ends at 128 x 4096, Based was timed at two contexts."""
    rows = []
    for size, scale in (("1.3b", 3.0), ("360m", 1.0)):
        for batch in (1, 128):
            for length in (512, 1024, 4096):
                time = None if batch * length > 2**18 else scale * (1 + batch * length / 2**16)
                rows.append(language_row(f"attention-{size}", batch, length, time))
                slower = None if time is None else 2 * time
                rows.append(language_row(f"attention-{size}", batch, length, slower, contender="sdpa-math"))
            for length in (1024, 4096):
                rows.append(language_row(f"based-{size}", batch, length, scale * (1 + batch / 256)))
    return pd.DataFrame(rows)
