"""The page about the paper's 24x (docs/TWENTYFOUR.md): its tables, as Markdown, made from rows.

Published: Table 1 of BASED (arXiv 2402.18668), one H100, tokens per millisecond; generation at batch 128 without a
prompt, prefill at batch 2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from basedbench.analysis.language import at_place, fastest, with_names
from basedbench.analysis.markdown import table

PAPER_SUITE, GENERATION_SUITE, PREFILL_SUITE = "paper-table1", "generation", "prefill"
# Preset, prompt length of its prefill, tokens per ms in prefill and in generation.
PUBLISHED = (
    ("attention-1.3b", 4096, 103.50, 0.99),
    ("based-1.3b", 4096, 161.71, 24.28),
    ("mamba-1.3b", 4096, 112.22, 25.69),
    ("attention-360m", 16384, 207.77, 23.82),
    ("based-360m", 16384, 514.57, 47.23),
    ("mamba-360m", 16384, 267.09, 39.95),
)
OURS = "ours"
PAPER_CONTENDERS = {"attention-1.3b": "sdpa-flash", "attention-360m": "sdpa-flash"}  # it used FlashAttention-2
PAPER_BATCH, PAPER_PREFILL_BATCH = 128, 2
WIDTHS = ("attention-1.3b", "attention-1.3b-h64", "attention-1.3b-h128")  # heads of 70, 64 and 128


def nothing(suite: str) -> str:
    """What stands where there are no rows."""
    return f"No rows of the suite `{suite}` are here yet; `basedbench throughput --suite {suite}` on a GPU makes them."


def generation_section(name: str, frame: pd.DataFrame | None) -> str:
    """A section of the page: published, heads, ratio, memory or prefill."""
    makers = {
        "published": (PAPER_SUITE, published_table),
        "heads": (PAPER_SUITE, heads_table),
        "ratio": (GENERATION_SUITE, ratio_tables),
        "memory": (GENERATION_SUITE, memory_table),
        "prefill": (PREFILL_SUITE, prefill_table),
    }
    suite, make = makers[name]
    rows = _rows(frame, suite)
    parts = [make(part) for part in _by_machine(rows)] if len(rows) else []
    return "\n\n".join(filter(None, parts)) or nothing(suite)


def published_table(rows: pd.DataFrame) -> str:
    """What the paper printed, and the same conditions here: tokens per millisecond, then Based over attention."""
    generation, prefill = _mode(rows, "generation", PAPER_BATCH), _mode(rows, "prefill", PAPER_PREFILL_BATCH)
    contexts = sorted(generation["length"].unique())
    known = pd.concat([generation, prefill])
    lines = []
    for model, prompt, *printed in PUBLISHED:
        found = known.loc[known["model"] == model, ["contender", "changes"]].drop_duplicates()
        for contender, changes in found.itertuples(index=False):
            same = {"model": model, "contender": contender, "changes": changes}
            ours = [_pick(prefill, **same, length=prompt), *(_pick(generation, **same, length=at) for at in contexts)]
            theirs = printed if contender == PAPER_CONTENDERS.get(model, OURS) else ("-", "-")
            name = f"{model} {changes}".strip()
            lines.append([name, contender, f"{prompt:,}", *map(str, theirs), *map(_per_ms, ours)])
    heading = ["model", "by", "prompt", "prefill, published", "generation, published", "prefill, here"]
    heading += [f"generation, here, context {length:,}" for length in contexts]
    rates = _table(rows, PAPER_SUITE, "tokens per millisecond", heading, lines)
    return "\n\n".join(filter(None, [rates, _published_ratios(rows, generation, prefill, contexts)]))


def _published_ratios(rows: pd.DataFrame, generation: pd.DataFrame, prefill: pd.DataFrame, contexts: list[int]) -> str:
    """Based over attention as the paper has it."""
    printed = {model: numbers for model, _, *numbers in PUBLISHED}
    lines = []
    for (attention, contender), (based, prompt, *_) in zip(PAPER_CONTENDERS.items(), PUBLISHED[1::3], strict=True):
        pairs = [(prefill, prompt), *((generation, length) for length in contexts)]
        theirs = [f"{a / b:.2f}" for a, b in zip(printed[based], printed[attention], strict=True)]
        for changes in generation.loc[generation["model"] == based, "changes"].unique():
            here = [
                _times(
                    _pick(part, model=attention, contender=contender, length=at),
                    _pick(part, model=based, changes=changes, length=at),
                )
                for part, at in pairs
            ]
            if any(text != "-" for text in here):
                name = f"{based} {changes}".strip()
                lines.append([f"{name} over {attention} by {contender}", *theirs, *here])
    heading = ["ratio", "prefill, published", "generation, published", "prefill, here"]
    heading += [f"generation, here, context {length:,}" for length in contexts]
    return _table(rows, PAPER_SUITE, "times as fast", heading, lines)


def heads_table(rows: pd.DataFrame) -> str:
    """One step of the 1.3B attention model by the width of its heads."""
    generation = _mode(rows, "generation", PAPER_BATCH)
    lines = []
    for (contender, length), group in generation[generation["model"].isin(WIDTHS)].groupby(["contender", "length"]):
        base = _pick(group, model=WIDTHS[1])
        for model in WIDTHS:
            row = _pick(group, model=model)
            if row is not None:
                lines.append([str(contender), f"{length:,}", model, _time(row), _times(row, base)])
    heading = ["by", "context", "model", "one step (95 % interval)", "times heads of 64"]
    return _table(rows, PAPER_SUITE, f"batch {PAPER_BATCH}", heading, lines)


def ratio_tables(rows: pd.DataFrame) -> str:
    """Tokens per second of Based over the fastest attention model of its size, batch by context."""
    parts = []
    for size, group in _mode(rows, "generation").groupby("size"):
        contexts = sorted(group.loc[group["family"] == "attention", "length"].unique())
        batches = sorted(group["batch"].unique())
        cells = {(batch, length): _ratio(at_place(group, batch, length)) for batch in batches for length in contexts}
        names = sorted({cell.attention for cell in cells.values() if cell.attention})
        if not names:
            continue
        error = max(cell.error for cell in cells.values())
        what = f"Based {str(size).upper()}, times as fast as the fastest of {', '.join(names)}"
        lines = [[f"{batch:,}", *(cells[batch, length].text for length in contexts)] for batch in batches]
        heading = ["batch", *(f"context {length:,}" for length in contexts)]
        parts.append(_table(group, GENERATION_SUITE, f"{what} (each to within {100 * error:.1f} %)", heading, lines))
    return "\n\n".join(parts)


def memory_table(rows: pd.DataFrame) -> str:
    """What a sequence carries, how many fit, and the rate at the largest batch that was timed."""
    generation = fastest(_mode(rows, "generation"))
    lines = []
    for (name, length), group in generation.groupby(["name", "length"]):
        timed = group[group["value"].notna()]
        if timed.empty:
            continue
        best = _best(timed)
        fits = timed["largest_batch"].dropna()
        refused = group.loc[group["status"] == "oom", "batch"]
        lines.append(
            [
                str(name),
                f"{length:,}",
                f"{best['state_bytes'] / 1e6:,.2f} MB",
                f"{int(fits.max()):,}" if len(fits) else "-",
                f"{refused.min():,}" if len(refused) else "-",
                f"{best['value']:,.0f} at batch {best['batch']:,}",
            ]
        )
    heading = [
        "model",
        "context",
        "state per sequence",
        "largest batch (computed)",
        "out of memory from",
        "most tokens/s",
    ]
    return _table(rows, GENERATION_SUITE, "by context", heading, lines)


def prefill_table(rows: pd.DataFrame) -> str:
    """Tokens per millisecond by the prompt's length."""
    prefill = _mode(rows, "prefill")
    lengths = sorted(prefill["length"].unique())
    lines = []
    for (name, batch), group in prefill.groupby(["name", "batch"], sort=False):
        lines.append([str(name), str(batch), *(_per_ms(_pick(group, length=at)) for at in lengths)])
    heading = ["model", "batch", *(f"{length:,}" for length in lengths)]
    return _table(rows, PREFILL_SUITE, "tokens per millisecond", heading, lines)


def _rows(frame: pd.DataFrame | None, suite: str) -> pd.DataFrame:
    """The suite's rows of whole models."""
    if frame is None:
        return pd.DataFrame()
    return frame[(frame["suite"] == suite) & frame["operator"].isna() & frame["model"].notna()]


def _by_machine(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, part in rows.groupby(["device_name", "dtype"], sort=False):
        yield part


def _mode(rows: pd.DataFrame, mode: str, batch: int | None = None) -> pd.DataFrame:
    """The rows of a mode, at one batch if it is given, named; those that nobody can compute are left out."""
    there = (rows["mode"] == mode) & (rows["status"] != "unsupported")
    return with_names(rows[there & (rows["batch"] == batch)] if batch else rows[there])


def _pick(rows: pd.DataFrame, **columns: Any) -> pd.Series | None:
    """The one row with these values."""
    for name, value in columns.items():
        rows = rows[rows[name] == value]
    return rows.iloc[0] if len(rows) else None


@dataclass(frozen=True)
class Ratio:
    """A cell of the table of ratios: its text, the attention model behind it, and its relative error."""

    text: str
    attention: str | None = None
    error: float = 0.0


def _ratio(rows: pd.DataFrame) -> Ratio:
    """Based against attention at one place, or what became of attention where it has no time."""
    based, attention = (rows[rows["family"] == family] for family in ("based", "attention"))
    based, timed = based[based["value"].notna()], attention[attention["value"].notna()]
    if based.empty or attention.empty:
        return Ratio("-")
    if timed.empty:
        return Ratio(str(attention["status"].iloc[0]))
    ours, theirs = _best(based), _best(timed)
    halves = [(row["high"] - row["low"]) / 2 / row["value"] for row in (ours, theirs)]
    error = sum(half**2 for half in halves if pd.notna(half)) ** 0.5
    return Ratio(f"{ours['value'] / theirs['value']:.2f}", str(theirs["name"]), error)


def _best(rows: pd.DataFrame) -> pd.Series:
    """The row of the highest rate."""
    return rows.sort_values("value").iloc[-1]


def _per_ms(row: pd.Series | None) -> str:
    """Tokens per millisecond, or what became of the row."""
    if row is None:
        return "-"
    return str(row["status"]) if pd.isna(row["value"]) else f"{row['value'] / 1e3:.4g}"


def _time(row: pd.Series) -> str:
    if pd.isna(row["value"]):
        return str(row["status"])
    return f"{row['median_ms']:.4g} ms ({row['ci_low_ms']:.4g} - {row['ci_high_ms']:.4g})"


def _times(row: pd.Series | None, base: pd.Series | None) -> str:
    """How many times as long as the base a row takes."""
    if row is None or base is None or pd.isna(row["value"]) or pd.isna(base["value"]):
        return "-"
    return f"{row['median_ms'] / base['median_ms']:.2f}"


def _table(rows: pd.DataFrame, suite: str, what: str, heading: list[str], lines: list[list[str]]) -> str:
    """A table under a line that says where its numbers come from; nothing without lines."""
    if not lines:
        return ""
    device, dtype = rows["device_name"].iloc[0], rows["dtype"].iloc[0]
    return f"{device}, suite `{suite}`, {dtype}, {what}:\n\n{table(heading, lines)}"
