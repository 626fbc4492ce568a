"""The columns of a result row, one table for each kind of result.

Units are part of a name (`_ms`, `_s`, `_bytes`, `_per_s`). The promised columns are the public interface of a results
folder: they are only ever added to. JSON columns hold an object as text, keys sorted, so that they group and compare.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from basedbench.plain_json import plain

STATUSES = (
    "ok",
    "diverged",
    "incorrect",
    "oom",
    "unsupported",
    "compile_error",
    "runtime_error",
    "timeout",
    "crashed",
)

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_REALS = pa.list_(_REAL)
_TIME = pa.timestamp("us", tz="UTC")

_CASE = {"case_id": _TEXT, "suite": _TEXT}
_OUTCOME = {"status": _TEXT, "reason": _TEXT, "stop_reason": _TEXT}
_ORIGIN = {"created_at": _TIME, "code_version": _TEXT, "device_name": _TEXT, "fingerprint": _TEXT}
# Every row's own name, which is also the name of the file it was first written to: what makes merging repeatable.
_ROW_ID = {"row_id": _TEXT}
_TELEMETRY = {
    "device": _TEXT,
    "clock_mhz": _REAL,
    "memory_clock_mhz": _REAL,
    "power_w": _REAL,
    "temperature_c": _REAL,
    "throttled": _FLAG,
    "throttle_reason": _TEXT,
}

_RECALL = {
    **_CASE,
    "mixer": _TEXT,
    "config": _TEXT,
    "d_model": _WHOLE,
    "layers": _WHOLE,
    "learning_rate": _REAL,
    "seed": _WHOLE,
    "precision": _TEXT,
    "epochs": _WHOLE,
    "concurrent_runs": _WHOLE,
    **_OUTCOME,
    "accuracy": _REAL,
    "accuracy_best": _REAL,
    "accuracy_by_slice": pa.map_(_TEXT, _REAL),
    "accuracy_by_epoch": _REALS,
    "loss_by_epoch": _REALS,
    "parameters": _WHOLE,
    "state_bytes": _WHOLE,
    "state_bytes_zoology": _WHOLE,
    "state_bytes_paper": _WHOLE,
    "train_s": _REAL,
    "data_hash": _TEXT,
    **_ORIGIN,
}
_RECALL_EXTRA = {
    "family": _TEXT,
    "layer_mixers": _TEXT,
    # The files of the user's own mixers, with their hashes; null where all are part of basedbench.
    "mixer_source": _TEXT,
    # What layers have beyond `config` and their mixers' defaults ("layer1.window"); null for most models.
    "layer_options": _TEXT,
    # Why the state columns are null though the run is well: the user's own mixer answers from more than its state.
    "state_doubt": _TEXT,
    "init": _TEXT,
    "recipe": _TEXT,
    "task": _TEXT,
    "select_split": _TEXT,
    "accuracy_by_slice_by_epoch": pa.map_(_TEXT, _REALS),
    "validation_accuracy": _REAL,
    "batch_size": _WHOLE,
    "weight_decay": _REAL,
    "vocab_size": _WHOLE,
    "steps": _WHOLE,
    "device": _TEXT,
    **_ROW_ID,
}
_THROUGHPUT = {
    **_CASE,
    "operator": _TEXT,
    "contender": _TEXT,
    "mode": _TEXT,
    "dtype": _TEXT,
    "batch": _WHOLE,
    "length": _WHOLE,
    "heads": _WHOLE,
    "key_dim": _WHOLE,
    "value_dim": _WHOLE,
    "config": _TEXT,
    **_OUTCOME,
    "median_ms": _REAL,
    "ci_low_ms": _REAL,
    "ci_high_ms": _REAL,
    "samples_ms": _REALS,
    "rounds": _WHOLE,
    "tokens_per_s": _REAL,
    "error": _REAL,
    "bytes": _WHOLE,
    "flops": _WHOLE,
    "bandwidth_fraction": _REAL,
    "flops_fraction": _REAL,
    "peak_memory_bytes": _WHOLE,
    "state_bytes": _WHOLE,
    "compile_s": _REAL,
    "cache": _TEXT,
    "graph": _FLAG,
    **_ORIGIN,
}
# A row is of an operator or of a whole model: one of `operator` and `model` is null.
_THROUGHPUT_EXTRA = {
    "model": _TEXT,
    "parameters": _WHOLE,
    # Of a recall suite's model; older rows do not say.
    "vocab_size": _WHOLE,
    # What a whole model holds on the device between calls (weights and states), and the most sequences that would fit.
    "memory_bytes": _WHOLE,
    "largest_batch": _WHOLE,
    "contender_version": _TEXT,
    "baseline": _TEXT,
    "round_medians_ms": _REALS,
    "round_sizes": pa.list_(_WHOLE),
    "outliers": _WHOLE,
    # Samples during which the device waited for the host, whatever was done to hide it.
    "exposed_samples": _WHOLE,
    "wall_ms": _REAL,
    # The same call in other tools, where that was asked for.
    "do_bench_ms": _REAL,
    "profiler_ms": _REAL,
    # Seconds of wall clock before the first sample, and in warm-up and sampling.
    "prepare_s": _REAL,
    "sampling_s": _REAL,
    "threads": _WHOLE,
    # What `error` was held against ("float64, at batch 1") and how large it might have been.
    "checked_against": _TEXT,
    "error_bound": _REAL,
    **_TELEMETRY,
    **_ROW_ID,
}
# A ceiling measured on this machine: `ceiling` says which (copy bandwidth, a bf16 product, ...), one row each.
_CALIBRATION = {
    **_CASE,
    "ceiling": _TEXT,
    "dtype": _TEXT,
    "config": _TEXT,
    **_OUTCOME,
    "median_ms": _REAL,
    "ci_low_ms": _REAL,
    "ci_high_ms": _REAL,
    "samples_ms": _REALS,
    "rounds": _WHOLE,
    "bytes": _WHOLE,
    "flops": _WHOLE,
    "bytes_per_s": _REAL,
    "flops_per_s": _REAL,
    **_ORIGIN,
}
_CALIBRATION_EXTRA = {"round_medians_ms": _REALS, **_TELEMETRY, **_ROW_ID}

RECALL = pa.schema(_RECALL | _RECALL_EXTRA)
THROUGHPUT = pa.schema(_THROUGHPUT | _THROUGHPUT_EXTRA)
CALIBRATION = pa.schema(_CALIBRATION | _CALIBRATION_EXTRA)

SCHEMAS: dict[str, pa.Schema] = {"recall": RECALL, "throughput": THROUGHPUT, "calibration": CALIBRATION}
PROMISED: dict[str, tuple[str, ...]] = {
    "recall": tuple(_RECALL),
    "throughput": tuple(_THROUGHPUT),
    "calibration": tuple(_CALIBRATION),
}
KINDS = tuple(SCHEMAS)
JSON_COLUMNS = ("config", "layer_options", "fingerprint", "recipe", "task")


def schema_of(kind: str) -> pa.Schema:
    """The schema of a kind of result. Raises ValueError for an unknown kind."""
    if kind not in SCHEMAS:
        raise ValueError(f"unknown kind of result {kind!r}; kinds: {', '.join(KINDS)}")
    return SCHEMAS[kind]


def blank_row(kind: str) -> dict[str, Any]:
    """A row with every promised column null: where a writer starts, so that a failure is a whole row too."""
    schema_of(kind)
    return dict.fromkeys(PROMISED[kind])


def check_row(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it is stored: JSON as text, `created_at` filled in.

    Raises ValueError, which is a mistake in the program, for a missing or unknown column, a value of the wrong type,
    a null `suite`, `case_id` or `status`, or an unknown status.
    """
    names = set(schema_of(kind).names)
    missing = [name for name in PROMISED[kind] if name not in row and name != "created_at"]
    unknown = sorted(set(row) - names)
    if missing or unknown:
        raise ValueError(f"a {kind} row lacks columns {missing} or has unknown ones {unknown}")
    if empty := [name for name in ("suite", "case_id", "status") if not row[name]]:
        raise ValueError(f"a {kind} row has no {' and no '.join(empty)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"unknown status {row['status']!r}; known: {', '.join(STATUSES)}")
    stored = {name: _as_json(name, value) if name in JSON_COLUMNS else value for name, value in row.items()}
    created_at = stored["created_at"] = row.get("created_at") or datetime.now(UTC)
    if not isinstance(created_at, datetime) or created_at.tzinfo is None:
        raise ValueError(f"created_at takes a time with its zone, not {created_at!r}")
    return stored


def to_table(kind: str, row: Mapping[str, Any]) -> pa.Table:
    """A checked row as a table of one line; columns that are not given are null. Raises ValueError as `check_row`."""
    schema = schema_of(kind)
    return pa.table([_column(field, row.get(field.name)) for field in schema], schema=schema)


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table as plain Python rows: maps as dicts, lists as lists, nulls as None."""
    columns = {field.name: plain_values(table.column(field.name), field.type) for field in table.schema}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def plain_values(column: pa.ChunkedArray, kind: pa.DataType) -> list[Any]:
    """A column as Python values. pyarrow gives a map as a list of pairs; here it is a dict."""
    values = column.to_pylist()
    return [value if value is None else dict(value) for value in values] if pa.types.is_map(kind) else values


def _column(field: pa.Field, value: Any) -> pa.Array:
    # pyarrow would silently cut 1.5 down to 1.
    if pa.types.is_integer(field.type) and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"column {field.name!r} takes whole numbers, not {value!r}")
    try:
        return pa.array([value], field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"column {field.name!r} ({field.type}) cannot hold {value!r}: {error}") from error


def _as_json(name: str, value: Any) -> str | None:
    """Canonical JSON of an object or of its text: equal configurations are equal strings."""
    if value is None:
        return None
    try:
        return json.dumps(json.loads(value) if isinstance(value, str) else value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} takes JSON, not {value!r}: {error}") from error


def decode_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row ready to be printed as JSON: JSON columns as objects, times as text, numbers that JSON lacks as null.

    What is no JSON in a JSON column, in a row of another version, stays text.
    """
    return {name: plain(decoded(value) if name in JSON_COLUMNS else value) for name, value in row.items()}


def decoded(value: Any) -> Any:
    """What a JSON text says; all else, and text that is no JSON, as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):  # the second for brackets without end
        return value
