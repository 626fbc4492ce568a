"""The tables at the end of `basedbench throughput`: operators by length, whole models by batch and context."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from basedbench.config.models import model_words
from basedbench.config.throughput import OPERATOR_AXES
from basedbench.plots.scales import quantity
from basedbench.store.schema import decode_json
from basedbench.timing.baseline import speed_up

Row = Mapping[str, Any]
COLUMNS = ("length", "contender", "median", "95 % interval", "tokens/s", "vs base", "memory", "bandw.", "FLOPs")
MODEL_COLUMNS = (
    "batch",
    "context",
    "model",
    "median",
    "+-",
    "tokens/s",
    "vs base",
    "state",
    "memory",
    "bandw.",
    "fits",
)
_SAME = ("mode", "dtype", "batch", "heads", "cache", "baseline")
_SAME_MODELS = ("mode", "dtype", "cache")


def timing_tables(shown: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """(title, heading, lines) of every table; `rows` are all of the suite: baselines are there."""
    for same, group in _grouped([row for row in shown if row["operator"]], _SAME, "length").items():
        yield _title(same, group), COLUMNS, _lines(group, rows)
    for same, group in _grouped([row for row in shown if not row["operator"]], _SAME_MODELS, "batch", "length").items():
        mode, dtype, cache = same
        yield f"{mode} {dtype}, {cache} cache; {_machine(group)}", MODEL_COLUMNS, _model_lines(group, rows)


def duration(milliseconds: float) -> str:
    """`1.23 ms`, `45.6 us`."""
    return f"{milliseconds * 1e3:.3g} us" if in_microseconds(milliseconds) else f"{milliseconds:.4g} ms"


def in_microseconds(milliseconds: float) -> bool:
    """Whether a time is shown in them."""
    return milliseconds < 0.1


def _interval(row: Row) -> str:
    """In the unit of the median beside it."""
    scale = 1e3 if in_microseconds(row["median_ms"]) else 1
    return f"{row['ci_low_ms'] * scale:.4g} - {row['ci_high_ms'] * scale:.4g}"


def half_width(row: Row) -> float:
    """Of the interval, relative to the median."""
    return float((row["ci_high_ms"] - row["ci_low_ms"]) / 2 / row["median_ms"])


def _grouped(rows: Sequence[Row], same: Sequence[str], *by: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in same), []).append(row)
    return {key: sorted(group, key=lambda row: [row[name] for name in by]) for key, group in groups.items()}


def _title(same: tuple[Any, ...], group: Sequence[Row]) -> str:
    mode, dtype, batch, heads, cache, baseline = same
    return f"{mode} {dtype}, batch {batch}, heads {heads}, {cache} cache, base {baseline}; {_machine(group)}"


def _machine(group: Sequence[Row]) -> str:
    count = next((row["threads"] for row in group if row["threads"]), 0)
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    return f"{group[0]['device_name']}{threads}"


def _model_lines(group: Sequence[Row], rows: Sequence[Row]) -> list[list[Any]]:
    lines: list[list[Any]] = []
    before = (None, None)
    for row in group:
        place = (row["batch"], row["length"])
        first = ["", ""] if place == before else ["" if row["batch"] == before[0] else str(row["batch"]), str(place[1])]
        name = " ".join(model_words(row["model"], decode_json(row)["config"], row["contender"]))
        lines.append([*first, name, *_model_numbers(row, rows)])
        before = place
    return lines


def _model_numbers(row: Row, rows: Sequence[Row]) -> list[str]:
    sizes = [row["state_bytes"], row["peak_memory_bytes"]]
    state, memory = ("-" if size is None else quantity(size, "bytes") for size in sizes)
    fits = "-" if row["largest_batch"] is None else str(row["largest_batch"])
    if row["status"] != "ok":
        return [row["status"], "", "", "", state, "", "", fits]
    ratio = speed_up(row, rows)
    return [
        duration(row["median_ms"]),
        f"{100 * half_width(row):.1f} %",
        quantity(row["tokens_per_s"], "tokens_per_s"),
        f"{ratio:.2f}x" if ratio else "-",
        state,
        memory,
        _share(row["bandwidth_fraction"]),
        fits,
    ]


def _lines(group: Sequence[Row], rows: Sequence[Row]) -> list[list[Any]]:
    operators = {row["operator"] for row in group}
    shapes = {(row["operator"], row["key_dim"], row["value_dim"], row["config"]) for row in group}
    lines: list[list[Any]] = []
    for row in group:
        name = f"{row['operator']}/{row['contender']}" if len(operators) > 1 else row["contender"]
        if len(shapes) > len(operators):
            name = f"{name} {_widths(row)}"
        first = "" if lines and group[len(lines) - 1]["length"] == row["length"] else str(row["length"])
        lines.append([first, name, *_numbers(row, rows)])
    return lines


def _numbers(row: Row, rows: Sequence[Row]) -> list[str]:
    if row["status"] != "ok":
        return [row["status"], *[""] * (len(COLUMNS) - 3)]
    ratio, memory = speed_up(row, rows), row["peak_memory_bytes"]
    return [
        duration(row["median_ms"]),
        _interval(row),
        quantity(row["tokens_per_s"], "tokens_per_s"),
        f"{ratio:.2f}x" if ratio else "-",
        quantity(memory, "bytes") if memory is not None else "-",
        _share(row["bandwidth_fraction"]),
        _share(row["flops_fraction"]),
    ]


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.3g} %" if fraction >= 0.001 else "<0.1 %"


def _widths(row: Row) -> str:
    letters = {"key_dim": "K", "value_dim": "V"}
    axes = [f"{letters[name]}{row[name]}" for name in OPERATOR_AXES[row["operator"]] if name in letters]
    return " ".join([*axes, *(f"{name} {value}" for name, value in decode_json(row)["config"].items())])
