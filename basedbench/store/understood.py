"""Which rows this version understands: those of other versions may lack what it needs, or have it in another form."""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from basedbench.errors import warn
from basedbench.store.schema import JSON_COLUMNS, decoded

_NEEDED = {
    "recall": ("mixer", "config", "d_model", "learning_rate"),
    "throughput": ("contender", "mode", "dtype", "batch", "length", "config", "device_name"),
    "calibration": ("ceiling", "config"),
}
# Numbers that are above zero, or null where a row has none.
_POSITIVE = {
    "recall": ("d_model", "learning_rate"),
    "throughput": ("batch", "length", "heads", "key_dim", "value_dim"),
    "calibration": (),
}
_POSITIVE_OF_RESULTS = {
    "recall": (),
    "throughput": ("median_ms", "tokens_per_s"),
    "calibration": ("median_ms", "bytes_per_s", "flops_per_s"),
}
_LARGEST = 1e18  # beyond it, or below its inverse, a number is no measurement
_ROUNDED = 1e-6
_SLICE = "[1-9][0-9]{0,8}x[1-9][0-9]{0,8}"
_NEEDED_OF_RESULTS = {"recall": ("accuracy",), "throughput": ("median_ms",), "calibration": ()}


def understood(kind: str, table: pa.Table, where: str) -> pa.Table:
    """The rows that can be understood; of the others one warning says how many there are, and why.

    A recall row without a family gets its mixer's name as one.
    """
    if not table.num_rows:
        return table
    strange = pa.array([False] * len(table))
    told = []
    for what, mask in _troubles(kind, table):
        count = pc.sum(pc.and_not(mask, strange)).as_py()
        told += [f"{count} with {what}"] if count else []
        strange = pc.or_(strange, mask)
    if told:
        left_out = pc.sum(strange).as_py()
        warn(
            f"{left_out} of {len(table)} {kind} rows in {where} are left out, for this version cannot read them: "
            f"{', '.join(told)}."
        )
    kept = table.filter(pc.invert(strange))
    if kind == "recall":
        family = pc.coalesce(kept.column("family"), kept.column("mixer"))
        kept = kept.set_column(kept.schema.get_field_index("family"), kept.schema.field("family"), family)
    return kept


def _troubles(kind: str, table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """What may be wrong, with the rows of which it is true."""
    for name in _NEEDED[kind]:
        yield f"no {name}", _missing(table, name)
    ok = pc.equal(_flat(table, "status"), "ok")
    for name in _NEEDED_OF_RESULTS[kind]:
        yield f"no {name}", pc.and_(ok, _missing(table, name))
    for name in _POSITIVE[kind]:
        yield f"an impossible {name}", _outside(table, name, 1 / _LARGEST, _LARGEST)
    for name in _POSITIVE_OF_RESULTS[kind]:
        yield f"an impossible {name}", pc.and_(ok, _outside(table, name, 1 / _LARGEST, _LARGEST))
    for name in ("ci_low_ms", "ci_high_ms") if kind == "throughput" else ():  # the lower one may be below zero
        yield f"an impossible {name}", pc.and_(ok, _outside(table, name, -_LARGEST, _LARGEST))
    if kind == "recall":
        yield "an impossible accuracy", pc.and_(ok, _outside(table, "accuracy", -_ROUNDED, 1 + _ROUNDED))
    if kind == "throughput":
        yield "no operator and no model", pc.and_(_missing(table, "operator"), _missing(table, "model"))
    for name in table.column_names:
        if name in JSON_COLUMNS:
            yield f"a {name} that is no JSON object", _no_object(table, name)
    if kind == "recall":
        maps = table.column("accuracy_by_slice").to_pylist()
        mask = [any(not re.fullmatch(_SLICE, name) for name, _ in one or ()) for one in maps]
        yield "slices that are not LENGTHxPAIRS", pa.array(mask, pa.bool_())


def _flat(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _missing(table: pa.Table, name: str) -> pa.Array:
    return pc.is_null(_flat(table, name), nan_is_null=True)


def _outside(table: pa.Table, name: str, low: float, high: float) -> pa.Array:
    """Where there is a number that is not within these ends; NaN counts as none."""
    values = pc.cast(_flat(table, name), pa.float64(), safe=False)
    return pc.fill_null(pc.or_(pc.less(values, low), pc.greater(values, high)), False)


def _no_object(table: pa.Table, name: str) -> pa.Array:
    column = _flat(table, name)
    values = [
        value for value in column.unique().to_pylist() if value is not None and not isinstance(decoded(value), dict)
    ]
    return pc.is_in(column, value_set=pa.array(values, pa.string()))
