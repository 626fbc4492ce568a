"""A batch without sequences: results of its shape, and no gradients of parameters."""

from dataclasses import replace

import pytest
import torch

from basedbench.checking import draws
from basedbench.checking.operators import FORMS, arguments_of, sequence_results
from basedbench.checking.problems import problems_of

WITHOUT_BATCH = {"shift_filter", "implicit_filter", "diagonal_filter", "row_argmax", "linear_cross_entropy"}
OTHERS = {"attention_decode", "cache_append", "adamw_step", "take_batch"}


@pytest.mark.parametrize("operator", sorted(FORMS.keys() - WITHOUT_BATCH - OTHERS))
def test_no_sequences(operator, monkeypatch):
    monkeypatch.setattr(draws, "BATCH", 0)
    problem = max(problems_of(operator), key=lambda one: len(one.options))
    problem = replace(problem, mode="gradients", length=5, dtype="fp32")
    given = arguments_of(problem, "cpu")
    found = sequence_results(problem, FORMS[operator].public, given)
    assert found.keys() > {"output 1"}
    for name, x in found.items():
        if name.startswith("output"):
            assert len(x) == 0, name
        else:
            assert x.shape == given[name.removeprefix("gradient of ")].shape
            assert torch.equal(x, torch.zeros_like(x)), name
