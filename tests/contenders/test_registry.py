"""Contenders by name, what they refuse, and the user's own."""

from pathlib import Path

import pytest
import torch

from basedbench.contenders import all_contenders, contender, get_contender, load_plugin, operator_of, registry
from basedbench.contenders.draw import Draw
from basedbench.errors import UserError
from tests.contenders.conftest import FORMS, small


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(registry, "_PLUGINS", {})


def test_every_contender_says_what_it_is_without_importing_its_package() -> None:
    found = {one.name: one for one in all_contenders()}
    assert {"ours", "reference", "sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math", "flex"} <= set(found)
    assert found["reference"].version == torch.__version__
    assert found["reference"].unavailable is None


def test_a_missing_package_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = get_contender("mamba_ssm")
    monkeypatch.setattr(type(missing), "package", "surely-not-installed")
    assert missing.unavailable == "surely-not-installed is not installed"
    assert missing.supports(small("ssd", "fwd")) == "surely-not-installed is not installed"


@pytest.mark.parametrize(
    ("name", "operator", "changes", "reason"),
    [
        ("sdpa-flash", "ssd", {}, "does not compute ssd"),
        ("sdpa-flash", "attention", {}, "equal key and value widths"),
        ("sdpa-cudnn", "attention", {"value_dim": 8}, "needs a CUDA device"),
        ("sdpa-cudnn", "attention", {"value_dim": 8, "device": "cuda"}, "bf16 and fp16 only"),
        ("sdpa-efficient", "attention", {}, "needs a CUDA device"),
        ("ours", "attention", {}, "in decoding only"),
        ("flex", "attention", {"mode": "decode"}, "whole sequences only"),
        ("flex", "attention", {"mode": "fwd_bwd"}, "no backward on a CPU"),
    ],
)
def test_what_is_beyond_a_contender_has_a_reason(name: str, operator: str, changes: dict, reason: str) -> None:
    assert reason in (get_contender(name).supports(small(operator, changes.pop("mode", "fwd"), name, **changes)) or "")


@pytest.mark.parametrize(("operator", "mode"), FORMS)
@pytest.mark.parametrize("name", ["ours", "reference", "sdpa-flash", "sdpa-math"])
def test_contenders_compute_the_operator(name: str, operator: str, mode: str) -> None:
    one, case = get_contender(name), small(operator, mode, name, key_dim=8, value_dim=8)
    if reason := one.supports(case):
        assert operator == "attention" or "does not compute" in reason
        return
    drawn = [operator_of(case).draw(Draw(case, 0, "cpu")) for _ in range(2)]
    result = one.build(case)(one.layout(case, drawn[0]))
    expected = get_contender("reference").build(case)(drawn[1])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_names_are_found_or_corrected() -> None:
    with pytest.raises(UserError, match="did you mean 'ours'"):
        get_contender("our")
    with pytest.raises(UserError, match="did you mean 'taylor_attention'"):
        contender("taylor_atention")
    with pytest.raises(UserError, match="no mode is called 'bwd'"):
        contender("ssd", modes=("bwd",))
    with pytest.raises(UserError, match="two contenders are called 'ours'"):
        contender("ssd", name="ours")(lambda x: x)


def write(folder: Path, text: str) -> Path:
    path = folder / "own.py"
    path.write_text(text)
    return path


def test_a_plugin_registers_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "from basedbench.contenders import contender\n"
        "from basedbench.kernels import taylor_attention\n"
        "@contender('taylor_attention', name='mine', modes=('fwd',))\n"
        "def copy(q, k, v):\n    return taylor_attention(q, k, v)\n",
    )
    added = load_plugin(path)
    assert [one.name for one in added] == ["mine"]
    assert load_plugin(path) is added
    assert get_contender("mine").supports(small("taylor_attention", "fwd")) is None
    assert get_contender("mine").supports(small("taylor_attention", "decode")) == "registered for fwd only"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers no contender"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("from basedbench.contenders import contender\ncontender('ssd', name='half')(print)\n1/0", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_fails_leaves_nothing_behind(tmp_path: Path, text: str, message: str) -> None:
    before = all_contenders()
    with pytest.raises(UserError, match=message):
        load_plugin(write(tmp_path, text))
    assert all_contenders() == before


def test_a_plugin_must_be_a_python_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Python file"):
        load_plugin(tmp_path / "absent.py")
