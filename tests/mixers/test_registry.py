"""Mixers from elsewhere: a user's file, an installed package."""

import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from basedbench.errors import UserError
from basedbench.mixers import Mixer, get_mixer, load_plugin, mixer_names, register, registry
from basedbench.models import LayerSpec, RecallModel, state_bytes, state_bytes_paper, state_bytes_zoology

PLUGIN = '''
import torch
from pydantic import Field
from basedbench.mixers import Mixer, MixerOptions, register

class Options(MixerOptions):
    power: int = Field(1, ge=1, description="Power of the count.")

@register
class RunningMean(Mixer):
    """The mean of the past."""
    name = "running_mean"
    Options = Options

    def forward(self, x_BLD):
        count = torch.arange(1, x_BLD.shape[1] + 1, device=x_BLD.device)
        return x_BLD.cumsum(1) / count[:, None] ** self.options.power

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        return {
            "sum": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device),
            "count": torch.zeros(batch_size, 1, dtype=dtype, device=device),
        }

    def step(self, x_BD, state):
        state["sum"] += x_BD
        state["count"] += 1
        return state["sum"] / state["count"] ** self.options.power, state
'''


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Whatever a test registers is gone after it."""
    mixer_names()
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))
    monkeypatch.setattr(registry, "_plugins", {})
    yield
    registry._load_entry_points.cache_clear()


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "running_mean.py"
    path.write_text(PLUGIN)
    return path


def test_a_plugin_is_a_mixer_like_any_other(plugin):
    assert load_plugin(plugin) == ["running_mean"]
    assert "running_mean" in mixer_names()
    assert get_mixer("running_mean").family == "running_mean"
    torch.manual_seed(0)
    model = RecallModel(32, 16, [LayerSpec("base_conv"), LayerSpec("running_mean", {"power": 2})]).eval()
    tokens_BL = torch.randint(0, 32, (2, 9))
    head, state = model.prefill(tokens_BL[:, :5])
    for t in range(5, 9):
        logits_BV, state = model.step(tokens_BL[:, t], state)
        torch.testing.assert_close(logits_BV, model(tokens_BL)[:, t])
    torch.testing.assert_close(head, model(tokens_BL)[:, :5])
    assert state_bytes(model, 9) == 4 * (2 * 16 + 16 + 1)
    assert state_bytes_zoology(model) == 4 * (3 * 16 + 17)
    assert state_bytes_paper(model) == 4 * 17


def test_options_of_a_plugin_are_checked(plugin):
    load_plugin(plugin)
    with pytest.raises(UserError, match="'power' = 0"):
        get_mixer("running_mean")(16, power=0)


def test_loading_twice_does_nothing(plugin):
    load_plugin(plugin)
    first = get_mixer("running_mean")
    assert load_plugin(str(plugin)) == ["running_mean"]
    assert get_mixer("running_mean") is first


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("x = 1\ny = = 2\n", 2, "SyntaxError"),
        ("import torch\n\nimport no_such_package\n", 3, "no_such_package"),
        (PLUGIN + "\nraise RuntimeError('half way')\n", PLUGIN.count("\n") + 2, "half way"),
        (PLUGIN.replace('"running_mean"', '"based"'), 9, "'based'"),
        (PLUGIN.replace('    name = "running_mean"\n', ""), 9, "`name`"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_names_file_and_line(tmp_path, source, line, reason):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError) as caught:
        load_plugin(path)
    assert f"{path}, line {line}:" in str(caught.value)
    assert reason in str(caught.value)
    assert "running_mean" not in mixer_names()
    assert not [name for name in sys.modules if name.startswith("basedbench_plugin_broken")]
    assert get_mixer("based").__module__ == "basedbench.mixers.based"


def test_a_mended_plugin_loads(plugin):
    plugin.write_text(PLUGIN.replace("@register", "@registr"))
    with pytest.raises(UserError, match="registr"):
        load_plugin(plugin)
    plugin.write_text(PLUGIN)
    assert load_plugin(plugin) == ["running_mean"]


def test_a_plugin_without_mixers_and_a_missing_one(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="registers no mixer"):
        load_plugin(path)
    for missing in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(UserError, match="no such Python file"):
            load_plugin(missing)


def test_only_mixers_register():
    with pytest.raises(UserError, match="Mixer"):
        register(dict)


class Packaged(Mixer):
    name = "packaged"


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
