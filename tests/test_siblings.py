"""The files of its own folder that a plugin imports are part of its version."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from basedbench import plugins
from basedbench.contenders import get_contender
from basedbench.siblings import siblings
from basedbench.sources import versions_note
from tests.test_plugins import CONTENDER

AHEAD = "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent))\n"
SAYS = "from basedbench.contenders import get_contender\nfrom basedbench.plugins import load_plugin\nimport sys\n"
SAYS += "for file in sys.argv[1:]:\n    load_plugin(file)\nprint(get_contender('mine').version)\n"


def version(*files: Path) -> str:
    """That of the contender `mine`, in a process of its own."""
    command = [sys.executable, "-c", SAYS, *map(str, files)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """mixer.py imports direct.py, which imports behind.py; later.py and apart.py are not imported when it is loaded."""
    head = AHEAD + "try:\n    import direct\nexcept ImportError:\n    pass\n"
    (tmp_path / "mixer.py").write_text(f"{head}def later():\n    import later\n{CONTENDER}")
    (tmp_path / "direct.py").write_text("from behind import NUMBER\nimport json\n")
    for name in ("behind", "later", "apart"):
        (tmp_path / f"{name}.py").write_text("NUMBER = 1\n")
    return tmp_path


def test_a_file_alone_is_hashed_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CONTENDER)
    (tmp_path / "contenders.py").write_text("")
    assert version(file) == f"mine.py {sha256(file.read_bytes()).hexdigest()[:8]}"


def test_a_change_in_what_it_imports_is_another_version(folder: Path) -> None:
    seen = [version(folder / "mixer.py")]
    for name, changes in (("direct", True), ("behind", True), ("later", False), ("apart", False)):
        with (folder / f"{name}.py").open("a") as file:
            file.write("# another line\n")
        seen.append(version(folder / "mixer.py"))
        assert (seen[-1] != seen[-2]) is changes, name
    assert "Rows of 3 versions of mixer.py" in versions_note(seen)


def test_what_other_plugins_of_the_folder_import_changes_nothing(folder: Path) -> None:
    (folder / "other.py").write_text(AHEAD + "import later, apart, behind\n" + CONTENDER.replace("'mine'", "'other'"))
    assert version(folder / "other.py", folder / "mixer.py") == version(folder / "mixer.py")


@pytest.mark.usefixtures("own_registries")
def test_files_of_other_folders_are_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a package its own folder, from inside; from outside nothing."""
    package = tmp_path / "a_package_of_theirs"
    package.mkdir()
    for name, text in {"__init__": "", "ops": "from . import maths\n", "maths": "", "unused": ""}.items():
        (package / f"{name}.py").write_text(text)
    (package / "mixer.py").write_text("from .ops import maths\nimport torch\n")
    (tmp_path / "mine.py").write_text(f"import a_package_of_theirs.mixer\n{CONTENDER}")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugin(tmp_path / "mine.py")
    mine = sys.modules[get_contender("mine").function.__module__]  # type: ignore[attr-defined]
    assert siblings(mine) == []
    inside = siblings(sys.modules["a_package_of_theirs.mixer"])
    assert [path.name for path in inside] == ["__init__.py", "maths.py", "ops.py"]
