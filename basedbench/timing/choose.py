"""Which cases of a suite are meant: `--contender`, `--mode` and `--filter`, each refused if it means nothing."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from basedbench.config.matching import matching
from basedbench.config.models import MODELS, ModelCase
from basedbench.config.throughput import AnyCase, ThroughputSuite
from basedbench.contenders import Contender, all_contenders, get_contender
from basedbench.contenders.language import IMPLEMENTATIONS, check_case, config_of
from basedbench.errors import UserError, nearest
from basedbench.models.language import identify_checkpoint

Row = Mapping[str, Any]
MODES = ("fwd", "fwd_bwd", "decode", "generation", "prefill")


def choose(
    suite: ThroughputSuite,
    device: str,
    *,
    plugins: Sequence[Contender] = (),
    contenders: Sequence[str] = (),
    mode: str | None = None,
    pattern: str | None = None,
) -> list[AnyCase]:
    """The cases on a kind of device ("cpu" or "cuda") that all the options leave.

    `plugins` join the sections of their operators; `contenders` replace those of every section, and need not be in the
    suite. Raises UserError for an unknown name or mode, a malformed pattern, or if nothing is left.
    """
    named = {one.name: one for one in all_contenders()}
    for name in contenders:
        if name not in named and name not in IMPLEMENTATIONS:
            raise UserError(f"no contender is called {name!r}; {nearest(name, {*named, *IMPLEMENTATIONS})}")
    extra = [*plugins, *(named[name] for name in contenders if name in named)]
    pairs = [(operator, one.name) for one in extra for operator in one.operators]
    pairs += [(MODELS, name) for name in contenders if name in IMPLEMENTATIONS]
    cases = suite.expand(device, pairs)
    for case in cases:  # a suite that names what there is not is refused before anything runs
        _check(case, f"suite {suite.name}, {case.subject}")
    if contenders:
        cases = _left(
            [case for case in cases if case.contender in contenders],
            f"suite {suite.name} has no operator or model that {' or '.join(contenders)} computes",
        )
    if mode is not None:
        if mode not in MODES:
            raise UserError(f"--mode {mode!r}: {nearest(mode, MODES)}")
        cases = _left([case for case in cases if case.mode == mode], f"suite {suite.name} has no case of mode {mode}")
    return cases if pattern is None else matching(cases, pattern, "cases")


def with_checkpoint(cases: Sequence[AnyCase], path: Path) -> list[AnyCase]:
    """Cases of whole models with the weights at `path`. UserError unless these fit every one of them."""
    models = [case for case in cases if isinstance(case, ModelCase)]
    if len(models) < len(cases):
        raise UserError("--checkpoint is for whole models alone: name a suite of them, or choose some with --filter.")
    names = list(dict.fromkeys(case.model for case in models))
    try:
        digest = identify_checkpoint({config_of(case) for case in models}, path)
    except UserError as error:
        if len(names) == 1:
            raise
        raise UserError(f"{error} The cases are of {', '.join(names)}; --filter chooses those of one.") from None
    return [case.model_copy(update={"checkpoint": digest, "weights": path.resolve()}) for case in models]


def pending(
    cases: Sequence[AnyCase],
    rows: Sequence[Row],
    *,
    fresh: bool,
    retry: Collection[str],
    again: Sequence[AnyCase] = (),
) -> list[AnyCase]:
    """The cases without a row, those whose row has a status to be tried again, and `again`; all of them if `fresh`."""
    done = {row["case_id"] for row in rows if row["status"] not in retry} - {case.id for case in again}
    return [case for case in cases if fresh or case.id not in done]


def outdated(cases: Sequence[AnyCase], rows: Sequence[Row], own: Sequence[Contender]) -> list[AnyCase]:
    """The cases of the user's `own` contenders with a row of another version of their files.

    A row of what failed in its first call does not say which, and may be of an earlier one.
    """
    versions = {one.name: one.version for one in own}
    known = {row["case_id"]: row["contender_version"] for row in rows if _says_version(row)}
    mine = [case for case in cases if case.contender in versions and case.id in known]
    return [case for case in mine if known[case.id] != versions[case.contender]]


def _says_version(row: Row) -> bool:
    """Or should: of what is refused beforehand nothing has run, and rows of earlier code do not say."""
    return bool(row["contender_version"]) or row["status"] not in ("ok", "unsupported")


def _check(case: AnyCase, where: str) -> None:
    try:
        if isinstance(case, ModelCase):
            check_case(case)
        else:
            get_contender(case.contender)
            _check_baseline(case)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check_baseline(case: AnyCase) -> None:
    """A ratio to what there is not would be missing without a word."""
    try:
        get_contender(case.baseline_key[1])
    except UserError as error:
        raise UserError(f"baseline {case.baseline!r}: {error}") from None


def _left(cases: list[AnyCase], otherwise: str) -> list[AnyCase]:
    if not cases:
        raise UserError(f"{otherwise}.")
    return cases
