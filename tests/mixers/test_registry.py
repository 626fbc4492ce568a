"""Mixers from elsewhere: an installed package."""

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from basedbench.errors import UserError
from basedbench.mixers import Mixer, MixerOptions, check_options, get_mixer, mixer_names, register, registry


@pytest.fixture(autouse=True)
def _own_registry(own_registries):
    """Whatever a test registers is gone after it."""
    yield
    registry._load_entry_points.cache_clear()


def test_only_mixers_register():
    with pytest.raises(UserError, match="Mixer"):
        register(dict)


class Packaged(Mixer):
    name = "packaged"


def test_options_are_options():
    with pytest.raises(UserError, match="Options is a class derived from basedbench"):
        register(type("Five", (Mixer,), {"name": "five", "Options": 5}))


def offer(monkeypatch, *entries):
    found = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry._load_entry_points.cache_clear()


def test_an_installed_package_offers_a_mixer(monkeypatch):
    monkeypatch.setitem(sys.modules, "some_package", sys.modules[__name__])
    offer(monkeypatch, ("packaged", "some_package:Packaged"))
    assert "packaged" in mixer_names()
    assert get_mixer("packaged") is Packaged


def test_a_broken_package_spoils_nothing_but_its_own_mixer(monkeypatch):
    offer(monkeypatch, ("fancy", "no_such_package:Fancy"))
    assert get_mixer("based").name == "based"
    assert "fancy" not in mixer_names()
    with pytest.raises(UserError, match=r"'fancy' could not be loaded.*no_such_package"):
        get_mixer("fancy")


@pytest.mark.parametrize("raised", ["SystemExit", "GeneratorExit"])
def test_a_package_that_prints_or_exits_does_so_to_itself(monkeypatch, tmp_path, capsys, raised):
    (tmp_path / "loud_package.py").write_text(f"print('hello')\nraise {raised}(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, ("loud", "loud_package:Loud"))
    assert "loud" not in mixer_names()
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=rf"'loud' could not be loaded: {raised}: 4"):
        get_mixer("loud")


@pytest.mark.parametrize("name", ["my mixer", "mine/fast", "(mine)"])
def test_a_name_is_one_word_of_labels_and_filters(name):
    with pytest.raises(UserError, match="a name is made of letters"):
        register(type("Odd", (Mixer,), {"name": name}))


class Unkind(MixerOptions):
    words: Any = "a"


class Choosy(Mixer):
    name, Options = "choosy", Unkind

    @classmethod
    def check(cls, d_model, options):
        if options.words == "b":
            raise KeyError("b")


@pytest.mark.parametrize(
    ("words", "said"), [("b", "KeyError: 'b'"), ({1}, "not JSON serializable"), (float("inf"), "not JSON compliant")]
)
def test_what_a_mixer_raises_over_its_options_is_a_sentence(words, said):
    register(Choosy)
    assert check_options("choosy", 8, {"words": "a"}) == {"words": "a"}
    with pytest.raises(UserError, match=f"mixer 'choosy' fails at its options: .*{said}"):
        check_options("choosy", 8, {"words": words})
