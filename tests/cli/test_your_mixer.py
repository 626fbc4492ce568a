"""What docs/YOUR_MIXER.md shows runs as it is written there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from basedbench import load
from basedbench.checking.laws import LAWS
from basedbench.mixers import get_mixer

PAGE = Path(__file__).parents[2] / "docs" / "YOUR_MIXER.md"


def files() -> dict[str, str]:
    """The page's files by the name in their first line."""
    blocks = re.findall(r"```(?:python|yaml|toml)\n(# (\S+)\n.*?)```", PAGE.read_text(), re.DOTALL)
    return {name: text for text, name in blocks}


def commands() -> list[list[str]]:
    """Every `basedbench ...` line of the page's shell blocks, as arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line)[1:] for line in "".join(blocks).splitlines() if line.startswith("basedbench ")]


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
def test_the_page_runs_from_the_class_to_the_frontier(tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    for name, text in files().items():
        Path(name).write_text(text)
    for arguments in commands():
        outcome = run_cli(*arguments)
        assert outcome.exit_code == 0, (arguments, outcome.stdout, outcome.stderr)
    runs = load("results", "recall")
    assert (runs["status"] == "ok").all()
    best = runs.groupby("mixer")["accuracy"].max()
    assert best["attention"] == pytest.approx(1, abs=0.05)
    assert best["fading"] > 0.3  # guessing among the values seen gives .17
    assert set(load("results/one", "recall")["mixer"]) == {"fading"}
    rates = load("results", "throughput")
    assert (rates["status"] == "ok").all()
    assert rates["model"].str.contains("fading").sum() == 2
    assert {path.name for path in Path("results").glob("*.png")} == {"pareto.png", "rate.png"}


def part(title):
    """A piece of `fading.py` that the page shows by itself."""
    return re.search(rf"```python\n# fading.py, {title}\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("asked", [False, True], ids=["whole", "asked"])
@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_the_page_s_other_forwards_keep_the_laws(tmp_path, run_cli, asked, packed):
    text = files()["fading.py"]
    if packed:
        forward = re.search(r"    def forward\(.*?\n\n", text, re.DOTALL)[0]
        text = text.replace(forward, f"{part('its forward that takes packed examples')}\n")
    if asked:
        text += f"\n{part('its forward_asked')}"
    (tmp_path / "fading.py").write_text(text)
    outcome = run_cli("check", "mixer", "fading", "--plugin", str(tmp_path / "fading.py"), "--quiet")
    assert outcome.stdout.strip() == f"fading keeps all {len(LAWS)} laws.", outcome.stdout
    assert get_mixer("fading").packs_as_it_is(None, asked=True) is packed
    assert ("forward_asked" in vars(get_mixer("fading"))) is asked


@pytest.mark.slow
def test_the_page_s_package_offers_the_mixer(tmp_path):
    for name in ("fading.py", "pyproject.toml"):
        (tmp_path / name).write_text(files()[name])
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, tmp_path]
    subprocess.run([sys.executable, *install], check=True, timeout=120)
    listed = subprocess.run(
        [sys.executable, "-m", "basedbench", "check", "mixer", "fading", "--key-dim", "4", "--quiet"],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert listed.stdout.strip() == f"fading keeps all {len(LAWS)} laws.", listed.stderr
