"""Contenders by name, what they refuse, and the user's own."""

from typing import Any

import pytest
import torch

from basedbench.contenders import Contender, all_contenders, contender, get_contender, operator_of, register
from basedbench.contenders.draw import Draw
from basedbench.errors import UserError
from tests.contenders.conftest import FORMS, small

pytestmark = pytest.mark.usefixtures("own_registries")


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
        ("torch-compile", "linear_cross_entropy", {}, "needs a CUDA device"),
    ],
)
def test_what_is_beyond_a_contender_has_a_reason(name: str, operator: str, changes: dict, reason: str) -> None:
    assert reason in (get_contender(name).supports(small(operator, changes.pop("mode", "fwd"), name, **changes)) or "")


@pytest.mark.parametrize(("operator", "mode"), FORMS)
@pytest.mark.parametrize("name", ["ours", "reference", "sdpa-flash", "sdpa-math", "torch"])
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
    with pytest.raises(UserError, match=r"did you mean 'ours'\? One of your own comes with --plugin"):
        get_contender("our")
    with pytest.raises(UserError, match="did you mean 'taylor_attention'"):
        contender("taylor_atention")
    with pytest.raises(UserError, match="no mode is called 'bwd'"):
        contender("ssd", modes=("bwd",))
    with pytest.raises(UserError, match=r"modes is a tuple: write modes=\('fwd',\)"):
        contender("ssd", modes="fwd")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes the name of an operator"):
        contender(print)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="two contenders are called 'ours'"):
        contender("ssd", name="ours")(lambda x: x)
    with pytest.raises(UserError, match="a name is made of letters"):
        contender("ssd", name="mine/fast")(lambda x: x)


def _odd() -> None:
    raise GeneratorExit("odd")


def made(**attributes: object) -> type[Contender]:
    return type("Mine", (Contender,), {"name": "mine", "operators": ("ssd",), **attributes})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (made(), r"not <class '.*Mine'>; write register\(Mine\(\)\)\."),
        (5, "not 5"),
        (made(name=None)(), "class Mine needs a class attribute `name`"),
        (made(operators="ssd")(), "operators is a tuple of names, not 'ssd'"),
        (made(operators=("sssd",))(), "did you mean 'ssd'"),
        (made(package=5)(), "package is a text or None, not 5"),
        (made(version=property(lambda self: _odd()))(), "version raises GeneratorExit: odd"),
        (made(version=property(lambda self: 1 / 0))(), "version raises ZeroDivisionError: division by zero"),
        (made(unavailable=True)(), "unavailable is a text or None, not True"),
    ],
)
def test_what_cannot_be_asked_about_is_not_registered(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        register(given)
    assert "mine" not in {one.name for one in all_contenders()}


def test_a_class_of_the_users_own_is_known_by_its_file_and_its_package() -> None:
    class Mine(Contender):
        name, operators, package = "mine", ("short_conv",), "torch"

    version = Mine().version
    assert version is not None
    assert version.startswith("test_registry.py ")
    assert version.endswith(f", torch {torch.__version__}")
