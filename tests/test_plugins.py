"""A user's file: mixers and contenders it registers; what it leaves behind if it fails: nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from basedbench.contenders import all_contenders, get_contender
from basedbench.errors import UserError
from basedbench.mixers import get_mixer, mixer_names
from basedbench.models import LayerSpec, RecallModel, state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.plugins import load_plugin, load_plugins
from tests.cli.conftest import heeds
from tests.contenders.conftest import small

pytestmark = pytest.mark.usefixtures("own_registries")

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


CONTENDER = """
from basedbench.contenders import contender
from basedbench.kernels import taylor_attention
@contender('taylor_attention', name='mine', modes=('fwd',))
def copy(q, k, v):
    return taylor_attention(q, k, v)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "running_mean.py"
    path.write_text(PLUGIN)
    return path


def test_a_plugin_is_a_mixer_like_any_other(plugin):
    assert load_plugin(plugin).mixers == ("running_mean",)
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
    assert load_plugin(str(plugin)).mixers == ("running_mean",)
    assert get_mixer("running_mean") is first


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("x = 1\ny = = 2\n", 2, "SyntaxError"),
        ("import torch\n\nimport no_such_package\n", 3, "no_such_package"),
        (PLUGIN + "\nraise RuntimeError('half way')\n", PLUGIN.count("\n") + 2, "half way"),
        (PLUGIN.replace('"running_mean"', '"based"'), 9, "'based'"),
        (PLUGIN.replace('    name = "running_mean"\n', ""), 9, "`name`"),
        (PLUGIN + PLUGIN, PLUGIN.count("\n") + 9, "two mixers are called 'running_mean'"),
        ("import sys\nsys.exit(0)\n", 2, "calls sys.exit"),
        ("import asyncio\nraise asyncio.CancelledError('no')\n", 2, "CancelledError"),
        (
            "import os\nif (child := os.fork()) == 0:\n    os._exit(0)\nos.waitpid(child, 0)\nos._exit(3)\n",
            5,
            "calls os._exit",
        ),
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
    assert load_plugin(plugin).mixers == ("running_mean",)


def test_a_plugin_imports_files_beside_it_now_and_later(tmp_path):
    """Behind what is installed: a file of the folder that is called like a library stays unread."""
    for name in ("beside_now", "beside_later", "json"):
        (tmp_path / f"{name}.py").write_text("NUMBER = 1\n")
    source = "import json\njson.dumps(1)\nfrom beside_now import NUMBER\n"
    (tmp_path / "mine.py").write_text(source + CONTENDER.replace("    return", "    import beside_later\n    return"))
    load_plugin(tmp_path / "mine.py")
    get_contender("mine").function(*(torch.rand(1, 3, 1, 4) for _ in range(3)))
    for name in ("beside_now", "beside_later"):
        assert Path(sys.modules.pop(name).__file__).parent == tmp_path


@pytest.mark.parametrize("import_", ["from helper_of_two import NUMBER", "import helper_of_two", "import between"])
def test_a_file_of_another_plugins_folder_is_not_taken_for_ones_own(tmp_path, import_):
    """Python has one module of a name; what the second file would compute with the first one's is nobody's wish."""
    for name, number in (("one", "OTHER"), ("two", "NUMBER")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helper_of_two.py").write_text(f"{number} = 1\n")
        (folder / "mine.py").write_text("import helper_of_two\n" + CONTENDER.replace("mine", f"mine-{name}"))
    (tmp_path / "two" / "between.py").write_text("import helper_of_two\n")
    (tmp_path / "two" / "mine.py").write_text("import math\n\n" + import_ + CONTENDER.replace("mine", "mine-two"))
    load_plugin(tmp_path / "one" / "mine.py")
    try:
        with pytest.raises(UserError, match=r"helper_of_two, and got .*one.* instead of .*two.*Rename") as caught:
            load_plugin(tmp_path / "two" / "mine.py")
    finally:
        for name in ("helper_of_two", "between"):
            sys.modules.pop(name, None)
    assert "two/mine.py, line 3: " in str(caught.value)
    assert "mine-two" not in {one.name for one in all_contenders()}


def test_a_failed_plugin_leaves_no_folder_behind(tmp_path):
    before = list(sys.path)
    (tmp_path / "mine.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match="no_such_package"):
        load_plugin(tmp_path / "mine.py")
    assert sys.path == before


def test_an_empty_plugin_and_a_missing_one(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="neither a mixer nor a contender"):
        load_plugin(path)
    for missing in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(UserError, match="no such Python file"):
            load_plugin(missing)


HALF = "from basedbench.contenders import contender\ncontender('ssd', name='half')(print)\n1 / 0\n"


def test_a_file_may_register_mixers_and_contenders(tmp_path):
    path = tmp_path / "both.py"
    path.write_text(PLUGIN + CONTENDER)
    added = load_plugin(path)
    assert added.mixers == ("running_mean",)
    assert [one.name for one in added.contenders] == ["mine"]
    assert load_plugins([path, path]) == [*added.contenders] * 2
    assert get_contender("mine").supports(small("taylor_attention", "fwd")) is None
    assert get_contender("mine").supports(small("taylor_attention", "decode")) == "registered for fwd only"


def test_a_failure_leaves_no_contender_behind(tmp_path):
    path, before = tmp_path / "half.py", all_contenders()
    path.write_text(HALF)
    with pytest.raises(UserError, match="line 3: ZeroDivisionError"):
        load_plugin(path)
    assert all_contenders() == before


def test_what_a_plugin_prints_stays_out_of_tables_and_json(tmp_path, capsys):
    path = tmp_path / "talks.py"
    path.write_text(PLUGIN + "\nprint('hello')\n")
    load_plugin(path)
    assert capsys.readouterr() == ("", "hello\n")


def test_settings_of_torch_that_a_plugin_changes_are_put_back(tmp_path):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.get_default_device(),
            torch.backends.mkldnn.conv.fp32_precision,
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
        )

    path, before = tmp_path / "meddles.py", settings()
    path.write_text(
        PLUGIN + "\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\n"
        "torch.set_num_threads(3)\ntorch.set_float32_matmul_precision('medium')\n"
        "torch.use_deterministic_algorithms(True)\ntorch.manual_seed(5)\ntorch.set_default_device('meta')\n"
        "torch.backends.fp32_precision = 'ieee'\n"
    )
    load_plugin(path)
    assert settings() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_while_a_plugin_loads_is_a_stop(tmp_path, number, code):
    """And no os._exit of the file's."""
    path = tmp_path / "stops.py"
    path.write_text(f"import signal\nsignal.raise_signal({int(number)})\n")
    command = [sys.executable, "-m", "basedbench", "list", "mixers", "--plugin", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=heeds)
    assert (done.returncode, done.stderr) == (code, "\nStopped.\n")


def test_one_class_may_be_registered_twice(tmp_path):
    path = tmp_path / "running_mean.py"
    path.write_text(PLUGIN + "\nregister(RunningMean)\n")
    assert load_plugin(path).mixers == ("running_mean",)
