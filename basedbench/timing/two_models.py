"""Two models of one results folder, each at its best learning rate, their accuracies over seeds compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Any

import pandas as pd

from basedbench.analysis.selection import select
from basedbench.errors import UserError
from basedbench.timing.pairs import (
    AGAINST,
    Pair,
    Row,
    accuracy_pair,
    by_case,
    by_model,
    recall_command,
    recall_labels,
    recall_pattern,
)

_LISTED = 6
_RATE = "learning_rate"


def model_pair(rows: Sequence[Row], mine: str, against: str, threshold: float, out: str) -> Pair:
    """The model that `mine` finds against the one that `against` finds; `out` is their folder.

    Both are words of labels without learning rate and seed: a mixer and as many of its options as it takes. UserError
    unless each finds one model, and they are two.
    """
    models = _models(rows)
    found = [_one(models, text, option) for text, option in ((against, "--against"), (mine, "--contender"))]
    if found[0] == found[1]:
        raise UserError(f"--contender {mine!r} and --against {against!r} are the same model: {found[0]}.")
    whole = [models[label] for label in found]
    other = _other(*(rows[0] for rows in whole))
    if "task" in other:
        raise UserError(f"{found[1]} and {found[0]} were not asked the same: their tasks differ.")
    a, b = map(_at_best_rate, whole)
    first = [same[0] for same in models.values()]
    told = [_told(label, one, same) for label, one, same in zip(found, (a, b), whole, strict=True)]
    pair = accuracy_pair(AGAINST.join(reversed(told)), a, b, threshold)
    if needed := pair.result.needed:
        wanted = [(_suites(rows, one), one[0], recall_pattern(one[0], first)) for one in (b, a)]
        pair = replace(pair, command=_command(wanted, needed, out))
    notes = [f"{name}: {' against '.join(values)}" for name, values in other.items()]
    reason = "; ".join(filter(None, [pair.result.reason, *notes])) or None
    return replace(pair, result=replace(pair.result, reason=reason))


def _suites(rows: Sequence[Row], model: Sequence[Row]) -> list[str]:
    """The suites that have runs of a model, the newest first."""
    cases = {row["case_id"] for row in model}
    return list(dict.fromkeys(row["suite"] for row in reversed(rows) if row["case_id"] in cases))


def _command(wanted: Sequence[tuple[Sequence[str], Row, str]], needed: int, out: str) -> str:
    """What trains both models' missing seeds: by a suite that has both, else each by its own."""
    suites, rows, patterns = zip(*wanted, strict=True)
    both = [suite for suite in suites[0] if suite in suites[1]]
    trained = [{row[name] for row in rows} for name in ("epochs", "precision", "mixer_source")]
    if both and all(len(values) == 1 for values in trained):
        return recall_command({**rows[0], "suite": both[0]}, needed, _chosen("|".join(reversed(patterns)), out))
    commands = [recall_command({**row, "suite": own[0]}, needed, _chosen(pattern, out)) for own, row, pattern in wanted]
    return " && ".join(dict.fromkeys(commands))


def _chosen(pattern: str, out: str) -> str:
    return f"--filter {quote(pattern)} --out {quote(out)}"


def _models(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each model, by a label that no other has."""
    alike = by_model(by_case(rows).values(), _RATE).values()
    labels = recall_labels([{**same[0], _RATE: 0.0} for same in alike])  # told apart as those of one rate are
    return {label.replace(" lr=0", "", 1): same for label, same in zip(labels, alike, strict=True)}


def _one(models: Mapping[str, Sequence[Row]], text: str, option: str) -> str:
    wanted = set(text.split())
    found = [label for label, rows in models.items() if wanted <= {*label.split(), f"precision={rows[0]['precision']}"}]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{option} {text!r} finds none of {len(models)} models, such as {next(iter(models))!r}.")
    listed = "; ".join(found[:_LISTED]) + (f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    raise UserError(f"{option} {text!r} finds {len(found)} models, where one is due: {listed}.")


def _other(a: Row, b: Row) -> dict[str, list[str]]:
    """How the two were trained unlike each other, in what is not of the models: the values in B and in A."""
    sides = []
    for row in (b, a):
        plain = {name: row[name] for name in ("task", "precision", "epochs", "device")}
        sides.append(plain | json.loads(row["recipe"] or "{}"))
    names = dict.fromkeys(name for side in sides for name in side if name != "init")  # which is a mixer's own
    values = {name: [str(side.get(name)) for side in sides] for name in names}
    return {name: both for name, both in values.items() if both[0] != both[1]}


def _at_best_rate(rows: list[Row]) -> list[Row]:
    """The model's runs at the rate that figures and tables take; all of them where none finished."""
    points = select(pd.DataFrame([*rows]), ["accuracy"])
    if points.empty:
        return rows
    rate = points.sort_values("accuracy", ascending=False)[_RATE].iloc[0]
    return [row for row in rows if row[_RATE] == rate]


def _told(label: str, rows: Sequence[Row], whole: Sequence[Row]) -> str:
    """What a reader wants to know of a side: `based d_model=64 lr=0.01 (3 seeds, best of 4 rates, 39 KiB of state)`."""
    counts = (sum(row["status"] == "ok" for row in rows), "seed"), (len({row[_RATE] for row in whole}), "rate")
    seeds, rates = (f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    state: Any = rows[0]["state_bytes"]
    size = f", {state / 1024:.3g} KiB of state" if state else ""
    return f"{label} lr={rows[0][_RATE]:g} ({seeds}, best of {rates}{size})"
