"""Two result folders, or two contenders of one, matched case by case and compared."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from statistics import fmean
from typing import Any

from basedbench.analysis.intervals import share_probability
from basedbench.analysis.labels import model_label
from basedbench.config import suite_argument
from basedbench.config.models import ModelCase, fields_of
from basedbench.config.recall import VOCABULARY
from basedbench.config.throughput import Case
from basedbench.config.timed import Timed
from basedbench.errors import warn
from basedbench.sources import plugin_options, sources_in
from basedbench.store.schema import decode_json
from basedbench.timing.baseline import counterpart, subject
from basedbench.timing.comparison import LEVEL, Comparison, compare_accuracies, compare_times
from basedbench.timing.machines import hardware_difference, software_difference

Row = Mapping[str, Any]
# Everything that defines a recall run except its seed.
_RECALL = (
    *("mixer", "config", "d_model", "layers", "layer_mixers", "layer_options"),
    *("learning_rate", "precision", "epochs", "init", "task", "recipe", "device"),
)
AGAINST = " against "  # between two models in a label
_LABELLED = ("mixer", "config", "d_model", "layer_options", "learning_rate")


@dataclass(frozen=True)
class Pair:
    """One line of a comparison: values a and b (ms, or mean accuracy), and the command that would settle UNCLEAR.

    `hardware` and `software` say what differs between the machines of the rows that were compared; `sources` what those
    of a, and of b, say of the user's files.
    """

    label: str
    a: float | None
    b: float | None
    result: Comparison
    command: str | None = None
    hardware: str | None = None
    software: str | None = None
    sources: tuple[Sequence[str], Sequence[str]] = ((), ())


def time_pairs(a: Sequence[Row], b: Sequence[Row], threshold: float, out: str) -> list[Pair]:
    """The cases that have a time in `a` with the same cases of `b`; `out` is the folder of b."""
    ours, theirs = by_case(row for row in a if row["status"] == "ok"), by_case(b)
    return [_time_pair(row, theirs.get(case), threshold, out) for case, row in ours.items()]


def contender_pairs(rows: Sequence[Row], mine: str, against: str, threshold: float, out: str) -> list[Pair]:
    """The rows of contender `mine` against those of `against` at the same place; names as `counterpart` takes them."""
    operator, _, name = mine.rpartition("/")
    chosen = [row for row in rows if row["contender"] == name and operator in ("", subject(row))]
    both = [(counterpart(row, against, rows), row) for row in chosen]
    timed = [(a, b) for a, b in both if b["status"] == "ok" or (a and a["status"] == "ok")]
    return [_time_pair(a, b, threshold, out) for a, b in timed]


def recall_pairs(a: Sequence[Row], b: Sequence[Row], threshold: float, out: str) -> list[Pair]:
    """Models trained alike on both sides, their accuracies over seeds compared; `out` is the folder of b."""
    ours, theirs = by_model(by_case(a).values()), by_model(by_case(b).values())
    models = [rows[0] for rows in ours.values()]
    return [
        recall_pair(
            label,
            rows,
            theirs.get(model, []),
            threshold,
            f"--filter {quote(recall_pattern(rows[0], models))} --out {quote(out)}",
        )
        for label, (model, rows) in zip(recall_labels(models), ours.items(), strict=True)
    ]


def recall_pattern(row: Row, models: Sequence[Row]) -> str:
    """What `--filter` finds a model's runs by: with the options in which others of its width differ from it."""
    own = json.loads(row["config"])
    alike = [json.loads(other["config"]) for other in models if all(other[k] == row[k] for k in ("mixer", "d_model"))]
    varied = [name for name, value in own.items() if any(other.get(name) != value for other in alike)]
    options = "".join(f"(?=(?:.* )?{name}={re.escape(str(own[name]))} )" for name in varied)
    return f"^{row['mixer']} d_model={row['d_model']} {options}.*lr={row['learning_rate']:g} "


def recall_labels(models: Sequence[Row]) -> list[str]:
    """A label for each; models whose labels would be the same are told apart by what differs between them."""
    labels = [model_label(row) for row in models]
    known = [_settings(row) for row in models]
    alike = [[known[i] for i, other in enumerate(labels) if other == label] for label in labels]
    return [
        " ".join([label, *(f"{k}={v}" for k, v in own.items() if any(one.get(k) != v for one in same))])
        for label, own, same in zip(labels, known, alike, strict=True)
    ]


def _settings(row: Row) -> dict[str, Any]:
    """What defines a recall run beside what its label says anyway, task and recipe one by one."""
    parts = [json.loads(row[name] or "{}") for name in ("task", "recipe")]
    names = [name for name in _RECALL if name not in (*_LABELLED, "task", "recipe")]
    return {name: row[name] for name in names} | parts[0] | parts[1]


def case_label(row: Row) -> str:
    """The label of a throughput row's case, which `--filter` matches."""
    config = decode_json({"config": row["config"]})["config"]
    if row["mode"] == "decode" and not row["operator"]:  # of a recall suite's model
        words = [] if row["vocab_size"] in (None, VOCABULARY) else [f"vocab_size={row['vocab_size']}"]
        options = [f"{name}={value}" for name, value in config.items()]
        return " ".join([row["model"], row["mode"], row["dtype"], f"{row['batch']}x{row['length']}", *words, *options])
    if not row["operator"]:
        return ModelCase.model_validate(_fields(ModelCase, row) | fields_of(config)).label
    return Case.model_validate(_fields(Case, row) | {"config": config}).label


def labelled(rows: Sequence[Row], where: str) -> list[Row]:
    """The rows of cases that this version knows; a warning says how many others there are."""
    known, others = [], []
    for row in rows:
        try:
            case_label(row)
        except (KeyError, ValueError):
            others.append(row)
        else:
            known.append(row)
    if others:
        some = f"{others[0]['operator'] or others[0]['model']}/{others[0]['contender']} {others[0]['mode']}"
        warn(
            f"{len(others)} of {len(rows)} throughput rows in {where} are left out, for this version does not know "
            f"their operator, mode or options, such as {some}."
        )
    return known


def by_case(rows: Iterable[Row]) -> dict[str, Row]:
    """The newest row of each case, of rows that are oldest first: a case that several suites share is one."""
    return {row["case_id"]: row for row in rows}


def _fields(kind: type[Timed], row: Row) -> dict[str, Any]:
    known = {name: row[name] for name in kind.model_fields if row.get(name) is not None}
    return {"baseline": "", **known}  # no part of a label


def _time_pair(a: Row | None, b: Row | None, threshold: float, out: str) -> Pair:
    present = [row for row in (a, b) if row is not None]
    label = case_label(present[-1])
    named = sources_in([a] if a else [], "throughput"), sources_in([b] if b else [], "throughput")
    for side, row in (("A", a), ("B", b)):
        if row is None or row["status"] != "ok":
            return Pair(label, _median(a), _median(b), _without_result(row, side), sources=named)
    assert a is not None
    assert b is not None  # both have a time
    result = compare_times(_rounds(a), _rounds(b), threshold)
    again = [a, b] if a["contender"] != b["contender"] else [b]
    command = _time_command(again, result, out) if result.needed else None
    notes = [result.reason, *_unlike(a, b)]
    result = replace(result, reason="; ".join(filter(None, notes)) or None)
    machines = hardware_difference(a, b), software_difference(a, b)
    return Pair(label, a["median_ms"], b["median_ms"], result, command, *machines, named)


def _without_result(row: Row | None, side: str) -> Comparison:
    """What is said where a side has no result: of a case that failed in A nothing is missing in B."""
    if row is None:
        return Comparison("MISSING", reason=f"not in {side}")
    return Comparison("FAILED" if side == "A" else "MISSING", reason=_failure(row, side))


def _failure(row: Row, side: str) -> str:
    """`oom in A: needs 9 GiB`, or what is known of it."""
    why = row["reason"] or row["stop_reason"]
    return f"{row['status']} in {side}" + (f": {why}" if why else "")


def _unlike(a: Row, b: Row) -> list[str]:
    """What a reader should know of how the two were timed."""
    held_back = [side for side, row in (("A", a), ("B", b)) if row["throttled"]]
    notes = [f"the device was held back in {' and '.join(held_back)}"] if held_back else []
    if bool(a["graph"]) != bool(b["graph"]):
        notes.append(f"only {'A' if a['graph'] else 'B'} ran in a CUDA graph, the host launched the other")
    return notes


def _rounds(row: Row) -> list[float]:
    """Rows of other versions may have none."""
    return [time for time in row["round_medians_ms"] or [] if time and 0 < time < math.inf]


def _median(row: Row | None) -> float | None:
    return None if row is None else row["median_ms"]


def _chosen_by(row: Row) -> str:
    """The label by which `--filter` chooses the row's case, before a checkpoint is given to it."""
    config = {name: value for name, value in json.loads(row["config"]).items() if name != "checkpoint"}
    return case_label({**row, "config": json.dumps(config)})


def _time_command(rows: Sequence[Row], result: Comparison, out: str) -> str:
    """What times these rows of one suite again."""
    row = rows[-1]
    if not row["operator"] and row["mode"] == "decode":
        mixers = row["model"].partition(" ")[0].split("+")
        place = f"--batch {row['batch']} --device {row['device']}"
        options = (
            f"{place} --rounds {result.needed} --out {quote(out)}{plugin_options(row['contender_version'], mixers)}"
        )
        return f"basedbench throughput --models {suite_argument(row['suite'])} {options}"
    labels = sorted({_chosen_by(row) for row in rows})
    pattern = "|".join(f"^{re.escape(label)}$".replace("\\ ", " ") for label in labels)
    options = f"--filter {quote(pattern)} --device {row['device']} --rounds {result.needed} --fresh --out {quote(out)}"
    options += " --checkpoint PATH" if "checkpoint" in json.loads(row["config"]) else ""
    options += "".join(dict.fromkeys(plugin_options(row["contender_version"]) for row in rows))
    return f"basedbench throughput --suite {suite_argument(row['suite'])} {options}"


def by_model(rows: Iterable[Row], *beside: str) -> dict[tuple[Any, ...], list[Row]]:
    """Recall rows that differ in nothing but their seeds, and what is named."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in _RECALL if name not in beside), []).append(row)
    return found


def recall_pair(label: str, a: Sequence[Row], b: Sequence[Row], threshold: float, chosen: str) -> Pair:
    """A model's accuracies over its seeds on both sides; `chosen` are the options that would run more of these."""
    pair = accuracy_pair(label, a, b, threshold)
    needed = pair.result.needed
    return replace(pair, command=recall_command(b[0], needed, chosen)) if needed else pair


def accuracy_pair(label: str, a: Sequence[Row], b: Sequence[Row], threshold: float) -> Pair:
    """The same of any two models, without the command that would run more."""
    values = [[row["accuracy"] for row in rows if row["status"] == "ok"] for rows in (a, b)]
    means = [fmean(one) if one else None for one in values]
    named = sources_in(a, "recall"), sources_in(b, "recall")
    for side, rows, one in (("A", a, values[0]), ("B", b, values[1])):
        if not one:
            return Pair(label, means[0], means[1], _without_result(rows[0] if rows else None, side), sources=named)
    result = _with_diverged(compare_accuracies(values[0], values[1], threshold), a, b)
    return Pair(label, means[0], means[1], result, None, *_machines(a, b), named)


def _with_diverged(result: Comparison, a: Sequence[Row], b: Sequence[Row]) -> Comparison:
    """With the seeds that diverged: where one side has a larger share of them, the others cannot show it as good.

    Where that is no chance it is the worse one, unless the others say that it is better.
    """
    statuses = [[row["status"] for row in rows] for rows in (a, b)]
    lost = [one.count("diverged") for one in statuses]
    tried = [count + one.count("ok") for count, one in zip(lost, statuses, strict=True)]
    if not any(lost):
        return result
    told = [f"{lost[i]} of {tried[i]} seeds diverged in {'AB'[i]}" for i in (0, 1) if lost[i]]
    share_a, share_b = (lost[i] / tried[i] for i in (0, 1))
    worse, better = ("LOWER", "HIGHER") if share_b > share_a else ("HIGHER", "LOWER")
    if share_a == share_b or result.verdict == worse:
        return replace(result, reason="; ".join(filter(None, [*told, result.reason])))
    others = result.reason if result.verdict == "UNCLEAR" else f"the others alone would be {result.verdict}"
    reason = "; ".join(filter(None, [*told, others]))
    if result.verdict != better and share_probability((lost[0], tried[0]), (lost[1], tried[1])) < LEVEL:
        return replace(result, verdict=worse, reason=f"{reason}; so unlike shares are no chance", needed=None)
    return replace(result, verdict="UNCLEAR", reason=reason, needed=max(result.needed or 0, 2 * max(tried)))


def _machines(a: Sequence[Row], b: Sequence[Row]) -> tuple[str | None, str | None]:
    """What differs between the hardware, and the software, of any two of these rows that have a result."""
    pairs = [(one, other) for one in a for other in b if one["status"] == other["status"] == "ok"]
    hardware, software = (
        next(filter(None, (differs(one, other) for one, other in pairs)), None)
        for differs in (hardware_difference, software_difference)
    )
    return hardware, software


def recall_command(row: Row, needed: int, chosen: str) -> str:
    """The runs like this one that are missing, with the files that it names: of others they may be another version."""
    files = plugin_options(row["mixer_source"], _mixers(row))
    seeds = f"--seed 0-{needed - 1}"
    same = f"--epochs {row['epochs']} --precision {row['precision']}"  # which the suite need not have said
    return f"basedbench recall --sweep --suite {suite_argument(row['suite'])} {chosen} {seeds} {same}{files}"


def _mixers(row: Row) -> list[str]:
    """Those of a recall row's layers, as far as it says."""
    return (row["layer_mixers"] or row["mixer"]).split("+")
