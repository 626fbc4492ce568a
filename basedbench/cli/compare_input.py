"""What the options of `basedbench compare` mean: which rows are held against which, and which may not be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from string import hexdigits
from typing import Any

import pyarrow.compute as pc

from basedbench.config.matching import matching
from basedbench.errors import UserError, check_text, nearest, warn
from basedbench.sources import AGAIN, files_of, versions_note
from basedbench.store.dataset import has_rows, kinds_in, no_rows, rows
from basedbench.timing.baseline import subject
from basedbench.timing.comparison import NOT_COMPARED, VERDICTS
from basedbench.timing.machines import hardware_difference, software_difference
from basedbench.timing.pairs import Pair, contender_pairs, labelled, recall_pairs, time_pairs

KINDS = ("throughput", "recall")
_DIGITS, _EARLIER = 12, 7  # of a commit in `code_version`
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """A results folder, or what one revision of basedbench left there."""

    folder: Path
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Place":
        """`FOLDER`, or `FOLDER@COMMIT` unless there is a folder of that very name. UserError if either is empty."""
        folder, at, revision = text.rpartition("@")
        named = at and folder and not Path(text).exists()
        if not text or (named and not revision):  # of a variable that is not set
            raise UserError(f"{text!r}: takes a results folder, or FOLDER@COMMIT.")
        return cls(Path(folder), revision) if named else cls(Path(text))

    def __str__(self) -> str:
        return f"{self.folder}@{self.revision}" if self.revision else str(self.folder)

    def has(self, kind: str) -> bool:
        """Whether there are rows of this kind. UserError if the revision is no text."""
        if self.revision is None:
            return kind in kinds_in(self.folder)
        check_text("commit", self.revision)
        return has_rows(self.folder, kind, _of_commit(self.revision))

    def rows(self, kind: str) -> Sequence[Row]:
        """The newest row of each case. UserError if the revision left none."""
        if self.revision is None:
            return rows(self.folder, kind, understood=True)
        found = rows(self.folder, kind, _of_commit(self.revision), understood=True)
        if not found:
            there = sorted({row["code_version"] or "unknown" for row in rows(self.folder, kind)})
            raise UserError(f"no {kind} rows of commit {self.revision!r} in {self.folder}; newest: {', '.join(there)}.")
        return found


@dataclass(frozen=True)
class Choice:
    """What is compared, as given on the command line."""

    a: Place
    b: Place | None
    contender: str | None
    against: str | None
    pattern: str | None
    threshold: float
    across_machines: bool


@dataclass(frozen=True)
class Found:
    """What came of it: the pairs, what else differs between the two sides, and the user's files in A and in B."""

    pairs: list[Pair]
    software: str | None
    files: tuple[list[str], list[str]]


def _of_commit(revision: str) -> pc.Expression:
    """Rows whose commit begins like the revision, which may be longer than what they hold of it."""
    version = pc.field("code_version")
    if not set(revision) <= set(hexdigits):
        return pc.match_substring(version, f"+g{revision}")
    digits = revision.lower()
    return pc.match_substring_regex(version, rf"\+g({digits[:_DIGITS]}|{digits[:_EARLIER]}(\.|$))")


def share(text: str) -> float:
    """`2%` or `0.02` as 0.02."""
    try:
        value = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UserError(f"--threshold {text!r}: takes a share between 0 and 1, such as 2% or 0.02.")
    return value


def verdicts(text: str) -> list[str]:
    """The verdicts of `--fail-on slower,lower`."""
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in VERDICTS:
            raise UserError(f"--fail-on {name.lower()!r}: {nearest(name.lower(), [one.lower() for one in VERDICTS])}")
    return names


def kinds(choice: Choice, asked: str | None) -> list[str]:
    """The kinds of result to compare. UserError if the options contradict each other or there is nothing."""
    for option, name in (("--contender", choice.contender), ("--against", choice.against)):
        if name is not None and not name.strip():  # of a variable that is not set
            raise UserError(f"{option} {name!r}: takes the name of a contender, or finds a model of recall rows.")
    if (choice.contender is None) != (choice.against is None):
        raise UserError("--contender and --against go together: --contender X --against Y.")
    if (choice.b is None) == (choice.contender is None):
        raise UserError("give two results folders, or one with --contender X --against Y.")
    if asked is not None and asked not in KINDS:
        raise UserError(f"--kind {asked!r}: {nearest(asked, KINDS)}")
    wanted = [asked] if asked else list(KINDS) if choice.contender is None else [_kind_of(choice)]
    places = [place for place in (choice.a, choice.b) if place]
    for place in places:
        if not place.folder.is_dir():
            raise UserError(f"there is no results folder {str(place.folder)!r} to compare.")
    found = [kind for kind in wanted if all(place.has(kind) for place in places)]
    if not found:
        folders = [place.folder for place in places]
        stored = [kind for kind in wanted if all(kind in kinds_in(folder) for folder in folders)]
        found = stored[:1]  # of another revision alone: `rows` says which are there
    if not found:
        empty = next((folder for folder in folders if not set(wanted) & set(kinds_in(folder))), None)
        if empty is None:
            both = " and ".join(f"{str(folder)!r} only of {', '.join(kinds_in(folder))}" for folder in folders)
            raise UserError(f"nothing to compare: there are results in {both}; run the same commands for both.")
        raise UserError(no_rows(empty, wanted[0]))
    return found


def _kind_of(choice: Choice) -> str:
    """Whether --contender names one, or a model: with an option, or by its mixer where no contender has that name."""
    named = choice.contender or ""
    if not choice.a.folder.is_dir() or not choice.a.has("recall"):
        return "throughput"
    if "=" in named or not choice.a.has("throughput"):
        return "recall"
    timed = {row["contender"] for row in choice.a.rows("throughput")}
    mixers = {row["mixer"] for row in choice.a.rows("recall")}
    return "recall" if named not in timed and mixers & set(named.split()) else "throughput"


def compared(choice: Choice, kinds: Sequence[str]) -> dict[str, Found]:
    """The pairs of each kind that has some which the filter finds.

    UserError for unlike machines, unless they were allowed, and if nothing is left.
    """
    sides = {}
    for kind in kinds:
        before = _known(choice.a, kind)
        sides[kind] = before, _known(choice.b, kind) if choice.b else before
    pairs = {kind: _pairs(choice, kind, *both) for kind, both in sides.items()}
    if not any(pairs.values()):
        raise UserError(f"no case in {choice.a} has a result to compare.")
    labels = {pair.label for pair in matching([*chain(*pairs.values())], choice.pattern or "", "cases")}
    found = {}
    for kind, both in sides.items():
        chosen = [pair for pair in pairs[kind] if pair.label in labels]
        if chosen:
            software = _check_machines(choice, chosen, *both) if choice.b else None
            found[kind] = Found(chosen, software, _files(choice, chosen))
    return found


def _files(choice: Choice, pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """The user's files in A and in B; a warning where one side has several versions of one."""
    before, after = ([one for pair in pairs for one in pair.sources[side]] for side in (0, 1))
    for place, named in ((choice.a, before), (choice.b or choice.a, after)):
        if told := versions_note(named):
            warn(f"{place}: {told} {AGAIN}")
    return files_of(before), files_of(after)


def _pairs(choice: Choice, kind: str, before: Sequence[Row], after: Sequence[Row]) -> list[Pair]:
    """All pairs of a kind. UserError if there is no such contender."""
    out = str((choice.b or choice.a).folder)
    if choice.contender is not None and choice.against is not None:
        if kind == "recall":
            from basedbench.timing.two_models import model_pair

            return [model_pair(before, choice.contender, choice.against, choice.threshold, out)]
        pairs = contender_pairs(before, choice.contender, choice.against, choice.threshold, out)
    else:
        make: Callable[..., list[Pair]] = time_pairs if kind == "throughput" else recall_pairs
        pairs = make(before, after, choice.threshold, out)
    for asked in filter(None, (choice.contender, choice.against)):
        operators = "/" in asked
        names = {f"{subject(row)}/{row['contender']}" if operators else row["contender"] for row in before}
        if asked not in names:
            raise UserError(f"no rows of {asked!r} in {choice.a}; {nearest(asked, names)}")
    if not pairs and choice.contender is not None:
        raise UserError(f"{choice.a} has no time of {choice.contender!r} and none beside it of {choice.against!r}.")
    return pairs


def _known(place: Place, kind: str) -> Sequence[Row]:
    """The rows of a place. UserError, after a warning that says why, if none can be compared."""
    found: Sequence[Row] = place.rows(kind)
    if kind == "throughput":
        found = labelled(found, str(place))
    if not found:
        raise UserError(f"{place} has no {kind} row that can be compared.")
    return found


def _check_machines(choice: Choice, pairs: Sequence[Pair], before: Sequence[Row], after: Sequence[Row]) -> str | None:
    """Refuses unlike machines, of the rows that were compared, or of the newest ones; returns what else differs."""
    held = [pair for pair in pairs if pair.result.verdict not in NOT_COMPARED]
    hardware, software = [pair.hardware for pair in held], [pair.software for pair in held]
    if not held:
        newest = before[-1], after[-1]
        hardware, software = [hardware_difference(*newest)], [software_difference(*newest)]
    unlike = list(filter(None, hardware))
    if unlike and not choice.across_machines:
        share = "" if len(unlike) == len(hardware) else f", in {len(unlike)} of {len(hardware)} cases"
        raise UserError(
            f"{choice.a} and {choice.b} come from unlike machines ({unlike[0]}{share}); "
            "say --across-machines to compare them all the same."
        )
    return "; ".join(dict.fromkeys(filter(None, [*hardware, *software]))) or None
