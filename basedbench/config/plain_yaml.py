"""YAML as plain values: numbers, text, truth values, lists and mappings."""

import re
from typing import Any

import yaml

_DATE = "tag:yaml.org,2002:timestamp"
_KINDS = {"int": "a whole number", "float": "a number", "bool": "a truth value", "str": "text", "timestamp": "a date"}


class AmbiguousError(yaml.constructor.ConstructorError):
    """YAML reads it as another number than whoever wrote it may have meant."""


def read(text: str) -> Any:
    """The values of one document. Raises yaml.YAMLError, whatever is wrong."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("its lists and mappings are nested too deep") from None


def problem(error: yaml.YAMLError) -> str:
    """What is wrong, in a few words: of a line in a wrong column PyYAML says what it met instead of an end."""
    said = str(getattr(error, "problem", None) or error)
    mark = getattr(error, "problem_mark", None)
    before = (mark.buffer or "")[: mark.pointer].split("\n") if mark else [""]
    if said == "but found another document":
        return "a suite is one document, and this is where a second one begins"
    if "'\\t'" in said and not before[-1].strip():
        return "wrong indentation: a tab, where only spaces may stand"
    if _wrong_column(said, before[-1], before[:-1]):
        return "wrong indentation: what belongs together begins in the same column"
    return said


def _wrong_column(said: str, begin: str, above: list[str]) -> bool:
    """Whether a line begins where no line above it allows, `begin` being what stands in front of the problem."""
    if said.startswith(("expected <block end>", "expected '<document start>'")):
        return not begin.strip()
    if said != "mapping values are not allowed here" or ": " in begin:
        return False
    key = next((line for line in reversed(above) if line.strip() and not line.lstrip().startswith("#")), "")
    return len(begin) - len(begin.lstrip()) > len(key) - len(key.lstrip(" -"))  # deeper than a key with a value


class _Loader(yaml.SafeLoader):
    """Safe, and a key that stands twice in one mapping is an error: only the last would count. Dates are text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # a tag may call anything a mapping
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise _error(key, f"{key.value!r} stands twice")
            if name is not None and key.tag != "tag:yaml.org,2002:merge":
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # half of a character cannot be stored
            elif isinstance(value, int | float) and isinstance(node, yaml.ScalarNode):
                _check_number(node, value)
        except (ValueError, LookupError, AttributeError):  # PyYAML's own of a scalar that is not what its tag says
            kind = node.tag.rpartition(":")[2]
            raise _error(node, f"{_begin(node)} cannot be read as {_KINDS.get(kind, kind)}") from None
        return value


def _check_number(node: yaml.ScalarNode, value: float) -> None:
    """AmbiguousError for `010`, which is 8, and `1:30`, which is 90."""
    octal = re.fullmatch(r"[-+]?0[0-7_]+", node.value) and int(node.value.replace("_", ""))
    if octal not in (None, value) or ":" in node.value:
        rule, instead = "a colon means base 60", "text in quotes"
        if octal is not None:
            rule, instead = "a first 0 means base 8", str(octal)
        problem = f"{_begin(node)} would be {value}, for in YAML {rule}; write {value} or {instead}"
        raise AmbiguousError(None, None, problem, node.start_mark)


def _begin(node: yaml.Node) -> str:
    shown = repr(node.value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _error(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
