"""Which files of a module's own folder it runs: those that its import statements, and theirs in turn, have loaded.

Told by the text of the files, not by what was loaded meanwhile: another plugin of the same folder changes nothing.
Files of other folders are not looked for: those may be a whole environment.
"""

import ast
import sys
from collections.abc import Collection, Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


def siblings(module: ModuleType) -> list[Path]:
    """The files beside a module's own that it runs, in order of their names."""
    own = _file(module)
    found: dict[Path, None] = {}
    todo = [module]
    while todo:
        for _, one, _ in _imported(todo.pop()):
            file = _file(one)
            if file.parent == own.parent and file != own and file not in found and file.is_file():
                found[file] = None
                todo.append(one)
    return sorted(found)


class Mistaken(NamedTuple):
    """A name that was imported, the file beside that was meant, and the line of the own file that led to it."""

    name: str
    meant: Path
    line: int


def mistaken(module: ModuleType, folders: Collection[Path]) -> Mistaken | None:
    """The first file of another of `folders` that a module, or a file beside it, has run for one of its own folder.

    Python has one module of a name: that of the folder which was there first.
    """
    own = _file(module).parent
    todo, seen = [(module, 0)], {module.__name__}
    while todo:
        importing, led = todo.pop()
        for name, one, line in _imported(importing):
            file = _file(one)
            folder = file.parent.parent if file.name == "__init__.py" else file.parent
            meant = [path for path in (own / f"{name}.py", own / name / "__init__.py") if path.is_file()]
            if meant and folder != own and folder in folders:
                return Mistaken(name, meant[0], led or line)
            if folder == own and one.__name__ not in seen:
                seen.add(one.__name__)
                todo.append((one, led or line))
    return None


def _file(module: ModuleType) -> Path:
    file = Path(getattr(module, "__file__", None) or "")
    return file.parent.resolve() / file.name


def _imported(module: ModuleType) -> Iterator[tuple[str, ModuleType, int]]:
    """What the import statements that run with a module's file have loaded: names, modules, and lines of the file."""
    try:
        statements = ast.parse(_file(module).read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # a library, or a file that was edited meanwhile
        return
    for name, line in _names(statements, getattr(module, "__package__", None) or ""):
        if loaded := sys.modules.get(name):
            yield name, loaded, line


def _names(statements: Iterable[ast.AST], package: str) -> Iterator[tuple[str, int]]:
    """The modules that statements name, and where, but for those inside functions: these run later, if at all."""
    for node in statements:
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from ((name, node.lineno) for name in _with_packages(one.name))
        elif isinstance(node, ast.ImportFrom):
            name = _absolute("." * node.level + (node.module or ""), package)
            names = [*_with_packages(name), *(f"{name}.{one.name}" for one in node.names)]
            yield from ((name, node.lineno) for name in names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _names(ast.iter_child_nodes(node), package)


def _absolute(name: str, package: str) -> str:
    try:
        return resolve_name(name, package)
    except ImportError:  # a relative import outside a package, which fails when it runs
        return name


def _with_packages(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c`: importing the last runs the others."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])
