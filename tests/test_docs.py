"""The code in the documentation runs."""

import re
from pathlib import Path

import torch

from basedbench.mixers import get_mixer
from basedbench.plugins import load_plugin

ROOT = Path(__file__).parents[1]


def code_blocks(document: str) -> list[str]:
    """The Python blocks of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_example_mixer_keeps_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "decay.py"
    path.write_text(code_blocks("docs/MIXERS.md")[0])
    assert load_plugin(path).mixers == ("decay",)
    torch.manual_seed(0)
    mixer = get_mixer("decay")(d_model=8, half_life=4.0)
    x_BLD = torch.randn(3, 12, 8)
    y_BLD = mixer(x_BLD)
    state = mixer.init_state(3, 12)
    for index, x_BD in enumerate(x_BLD.unbind(1)):
        y_BD, state = mixer.step(x_BD, state)
        torch.testing.assert_close(y_BD, y_BLD[:, index])
    assert sum(tensor[0].numel() * 4 for tensor in state.values()) == 4 * 8
