"""The examples of docs/PLUGINS.md are contenders that pass the check."""

import re
from pathlib import Path

import pytest
import torch

from basedbench.contenders import get_contender
from basedbench.plugins import load_plugin
from basedbench.timing.correctness import check
from tests.contenders.conftest import small

PAGE = Path(__file__).parents[2] / "docs" / "PLUGINS.md"


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(("name", "operator"), [("quadratic", "taylor_attention"), ("grouped", "short_conv")])
@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_the_examples_pass_the_check(name: str, operator: str, mode: str, tmp_path: Path) -> None:
    blocks = {
        re.match(r"# (\w+)\.py", block)[1]: block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    }
    path = tmp_path / f"{name}.py"
    path.write_text(blocks[name])
    assert [one.name for one in load_plugin(path).contenders] == [name]
    case = small(operator, mode, name)
    one = get_contender(name)
    assert one.supports(case) is None
    with torch.set_grad_enabled(mode == "fwd_bwd"):
        assert check(case, one, one.build(case), "cpu").reason is None


def test_every_operator_has_its_signature_on_the_page() -> None:
    from basedbench.config.throughput import OPERATOR_AXES

    table = PAGE.read_text().split("## Signatures")[1].split("## More")[0]
    assert all(f"`{operator}`" in table for operator in OPERATOR_AXES)
