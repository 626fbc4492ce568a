"""Suite files: found by name or path, read safely, checked, or refused in one sentence.

A suite may begin with another: `extends: figure2` takes that suite (a shipped one by name, or a file beside this one)
and changes what is written here. Mappings (task, train, test, measure) are changed key by key, other keys replaced;
`add_models` and `add_cases` come behind the other suite's `models` and `cases`.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from basedbench.config import plain_yaml
from basedbench.config.places import unknown_key
from basedbench.config.recall import RecallSuite
from basedbench.config.section import Suite, UnknownKeyError
from basedbench.config.throughput import ThroughputSuite
from basedbench.errors import UNREAD, UserError, check_text, nearest, plain, written

ADDED = {f"add_{name}": name for name in ("models", "cases")}
KINDS: dict[str, type[Suite]] = {"recall": RecallSuite, "throughput": ThroughputSuite}


def suite_argument(name: str) -> str:
    """A row's suite as the command line takes it: one of the user's own was a file."""
    return name if name in suite_names() else f"{name}.yaml"


def suite_names(kind: str | None = None) -> list[str]:
    """The names of the suites that come with basedbench, of one kind or of all."""
    files = [entry for entry in resources.files("basedbench.suites").iterdir() if entry.name.endswith(".yaml")]
    names = sorted(entry.name.removesuffix(".yaml") for entry in files)
    return [name for name in names if kind is None or load_suite(name).kind == kind]


def load_suite(name_or_path: str, kind: str | None = None) -> Any:
    """The suite of this name, or in this file; UserError if there is none, it is malformed or of another kind."""
    name, origin, text = _read(name_or_path)
    suite = parse_suite(text, name, origin)
    if kind is not None and suite.kind != kind:
        same = ", ".join(suite_names(kind))
        models = f" Its models are timed with --models {name_or_path}." if kind == "throughput" else ""
        raise UserError(f"suite {name_or_path!r} is a {suite.kind} suite; {kind} suites: {same}.{models}")
    return suite


def parse_suite(text: str, name: str, origin: str) -> Suite:
    """A suite from YAML; `origin` names the file in errors."""
    data = _extended(text, origin, ())
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        found = f"got {written(kind)}" if "kind" in data else "is missing"
        raise UserError(f"{origin}: kind: {found}; valid: {', '.join(KINDS)}.")
    try:
        return KINDS[kind].model_validate({**data, "name": data.get("name", name)})
    except ValidationError as error:
        raise UserError(f"{origin}: {explain(error, KINDS[kind])}") from None


def _extended(text: str, origin: str, within: tuple[str, ...]) -> dict[str, Any]:
    """The mapping of a suite with those that it extends merged in; `within` are the suites being extended."""
    data = _mapping(text, origin)
    base_name = data.pop("extends", None)
    if base_name is None:
        if added := next((key for key in data if key in ADDED), None):
            raise UserError(
                f"{origin}: {added}: goes with `extends: SUITE`, whose list it adds to; without, {ADDED[added]}."
            )
        return data
    if not isinstance(base_name, str):
        raise UserError(f"{origin}: extends: takes a suite's name or file, got {written(base_name)}.")
    beside = Path(origin).parent / base_name
    _, base_origin, base_text = _read(str(beside) if _is_path(base_name) else base_name)
    if os.path.realpath(base_origin) in map(os.path.realpath, (*within, origin)):
        raise UserError(f"{origin}: extends: {base_name!r} extends this suite in turn; leave one of them away.")
    base = _extended(base_text, base_origin, (*within, origin))
    base.pop("name", None)
    return _merged(base, data, origin)


def _merged(base: dict[str, Any], changes: dict[str, Any], origin: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if key in ADDED:
            if not isinstance(value, list):
                raise UserError(f"{origin}: {key}: takes a list, got {written(value)}.")
            merged[ADDED[key]] = [*(merged.get(ADDED[key]) or []), *value]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def _mapping(text: str, origin: str) -> dict[str, Any]:
    try:
        data = plain_yaml.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        fault = "" if isinstance(error, plain_yaml.AmbiguousError) else "not valid YAML: "
        raise UserError(f"{origin}{where}: {fault}{plain_yaml.problem(error)}.") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{origin}: a suite is a mapping that begins with `kind: recall`, `kind: throughput` or `extends: SUITE`."
        )
    return data


def explain(error: ValidationError, suite: type[Suite] | None = None) -> str:
    """The first thing that pydantic found wrong, as one sentence with the path to the key.

    Of a key that stands in the wrong section of a kind of suite, where it belongs.
    """
    first = error.errors()[0]
    path = _path(first["loc"])
    cause = first.get("ctx", {}).get("error")
    given = "" if first["type"] in ("value_error", "missing") else f", got {written(first['input'])}"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    said = plain(first)
    if suite and isinstance(cause, UnknownKeyError):
        said = unknown_key(suite, ".".join(part for part in _keys(first["loc"]) if isinstance(part, str)), cause)
    sentence = f"{path}{said}{given}".removesuffix(".")
    return sentence + ("" if sentence.endswith("?") else ".") + more


def _path(location: tuple[int | str, ...]) -> str:
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _keys(location))
    return f"{parts.lstrip('.')}: " if parts else ""


def _keys(location: tuple[int | str, ...]) -> list[int | str]:
    """A location without the types that were tried."""
    return [part for part in location if isinstance(part, int) or "[" not in part]


def _read(name_or_path: str) -> tuple[str, str, str]:
    """(name, origin, text) of a shipped suite or of the user's file."""
    check_text("suite", name_or_path, UNREAD)
    shipped = resources.files("basedbench.suites") / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if not _is_path(name_or_path):
        if not shipped.is_file():
            raise UserError(f"no suite is called {name_or_path!r}; {_nearest_suite(name_or_path)}")
        return name_or_path, f"suite {name_or_path}", shipped.read_text(encoding="utf-8")
    try:
        if path.exists() and not path.is_file():  # a device or a pipe might never end
            raise UserError(f"cannot read the suite file {path}: it is no ordinary file.")
        return path.stem, str(path), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the suite file {path}: {reason}.") from None


def _is_path(name_or_path: str) -> bool:
    path = Path(name_or_path)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _nearest_suite(name: str) -> str:
    files = resources.files("basedbench.suites").iterdir()
    return nearest(name, [entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml")])
