"""The two starts of a model: the same weights, unless the mixer says that they are not."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from basedbench.mixers import Mixer, get_mixer
from basedbench.models.recall import LayerSpec, RecallModel
from basedbench.training.cases import recall_cases
from tests.mixers.test_contract import CASES, IDS
from tests.training.conftest import tiny_suite


def weights(name: str, d_model: int, options: dict[str, object], init: str) -> Iterator[Tensor]:
    torch.manual_seed(0)
    layers = [LayerSpec(name, options)] * 2
    return RecallModel(16, d_model, layers, init=init).parameters()  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "d_model", "options"), CASES, ids=IDS)
def test_init_changes_the_weights_exactly_where_it_matters(name: str, d_model: int, options: dict[str, object]) -> None:
    pairs = zip(*(weights(name, d_model, options, init) for init in ("published", "correct")), strict=True)
    mixer = get_mixer(name)
    buffers = "performer" in options.values()  # its rows are no parameters
    same = all(torch.equal(one, other) for one, other in pairs) and not buffers
    assert mixer.init_matters(mixer.resolve(d_model, options).model_dump()) != same


def test_a_run_that_is_the_same_with_both_is_one_run() -> None:
    sections = [{"mixer": name, "grid": {"d_model": 64}} for name in ("attention", "rwkv7")]
    suite = tiny_suite(sections)
    ids = []
    for init in ("published", "correct"):
        train = suite.train.model_copy(update={"init": init})
        ids.append([case.case_id for case in recall_cases(suite.model_copy(update={"train": train}))])
    half = len(ids[0]) // 2
    assert ids[0][:half] == ids[1][:half]
    assert not set(ids[0][half:]) & set(ids[1][half:])


def test_a_mixer_of_ones_own_with_a_start_of_its_own_is_taken_to_have_two() -> None:
    class Plain(Mixer):
        name = "plain"

    class Own(Plain):
        def initialise(self, layers: int, init: str) -> None: ...

    assert not Plain.init_matters({})
    assert Own.init_matters({})
