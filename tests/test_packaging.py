"""What an install holds: one importable package, with the suites and the kernels inside."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the source, so that building leaves nothing behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("basedbench", "kernels", "suites"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    out = source / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, timeout=300)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_only_basedbench_is_importable(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"basedbench"}


def test_every_module_and_suite_is_inside(wheel: zipfile.ZipFile) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "basedbench").rglob("*.py")}
    for folder in ("kernels", "suites"):
        files = [path for ending in ("*.py", "*.yaml") for path in (ROOT / folder).rglob(ending)]
        expected |= {f"basedbench/{path.relative_to(ROOT)}" for path in files}
    assert expected <= set(wheel.namelist())
    assert "basedbench/suites/figure2.yaml" in wheel.namelist()
    assert "basedbench/py.typed" in wheel.namelist()


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "basedbench = basedbench.__main__:main" in wheel.read(entry).decode()
