"""flash-linear-attention's operators without the rest of it: what importing the whole package brings takes seconds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from basedbench.contenders import fla


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name, whose whole counts how often it is imported."""
    root = tmp_path / "fla"
    (root / "ops" / "based").mkdir(parents=True)
    (root / "__init__.py").write_text("import fla.models\n__version__ = 'whole'")
    (root / "models.py").write_text("")
    (root / "ops" / "__init__.py").write_text("from fla import __version__ as seen")
    (root / "ops" / "based" / "__init__.py").write_text("from fla.ops import seen")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fla, "version", lambda name: "bare")
    forget()
    yield root
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
        del sys.modules[name]


def test_operators_come_without_models(package: Path) -> None:
    assert fla._ops("based").seen == "bare"
    assert "fla.models" not in sys.modules
    assert fla._ops("based") is sys.modules["fla.ops.based"]


def test_operators_that_need_more_get_all_of_it(package: Path) -> None:
    (package / "ops" / "based" / "__init__.py").write_text("from fla import models\nfrom fla.ops import seen")
    (package / "models.py").unlink()
    (package / "__init__.py").write_text("models = object()\n__version__ = 'whole'")
    assert fla._ops("based").seen == "whole"


def test_what_was_imported_before_is_taken(package: Path) -> None:
    import fla as whole  # type: ignore[import-not-found]

    assert whole.__version__ == "whole"
    assert fla._ops("based").seen == "whole"
