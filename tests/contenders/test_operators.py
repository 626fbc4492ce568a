"""What the timing knows of each operator: inputs, references, costs."""

from dataclasses import replace

import pytest
import torch

from basedbench.contenders import get_contender, operator_of, operators
from basedbench.contenders.attention import attention_reference
from basedbench.contenders.costs import bytes_of, flops_of
from basedbench.contenders.draw import Draw
from basedbench.contenders.operators import bind, reference_call
from tests.contenders.conftest import FORMS, small


@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_inputs_depend_on_the_problem_and_the_seed_alone(operator: str, mode: str) -> None:
    case, peer = small(operator, mode, "ours"), small(operator, mode, "reference", baseline="ours")
    draw = operator_of(case).draw
    mine, theirs, other = draw(Draw(case, 0, "cpu")), draw(Draw(peer, 0, "cpu")), draw(Draw(case, 1, "cpu"))
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name])
        if tensor.is_floating_point():
            assert (tensor != 0).all()
        if name not in ("A_DN", "position_B"):  # the same for every seed
            assert not torch.equal(tensor, other[name])


@pytest.mark.parametrize("operator", [operator for operator, mode in FORMS if mode == "decode"])
def test_a_step_by_the_sequence_reference_is_the_public_step(operator: str) -> None:
    case = small(operator, "decode", config={"window": 5} if operator == "sliding_window" else {})
    case = small(operator, "decode") if operator in ("ssd", "short_conv", "delta_rule") else case
    form = operator_of(case)
    drawn = {name: x.double() if x.is_floating_point() else x for name, x in form.draw(Draw(case, 0, "cpu")).items()}
    one, two = ({name: x.clone() for name, x in drawn.items()} for _ in range(2))
    for _ in range(3):  # the rewritten state is what the next step starts from
        expected = bind(form.reference, case)(one)
        public = bind(form.public or form.reference, case)(two)
        torch.testing.assert_close(public, expected, rtol=1e-10, atol=1e-10)
    for name in form.states:
        torch.testing.assert_close(two[name], one[name], rtol=1e-10, atol=1e-10)
        assert operator == "attention" or not torch.equal(one[name], drawn[name])


@pytest.mark.parametrize("batch", [1, 2])
def test_our_attention_steps_on_a_cpu_whatever_the_batch(batch: int) -> None:
    case = small("attention", "decode", batch=batch)
    drawn = operator_of(case).draw(Draw(case, 0, "cpu"))
    y_BHV = get_contender("ours").build(case)({name: x.clone() for name, x in drawn.items()})
    torch.testing.assert_close(y_BHV, bind(operator_of(case).reference, case)(drawn))


@pytest.mark.parametrize("length", [1, 17, 130])
def test_the_attention_reference_is_causal_softmax_attention(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basedbench.contenders.attention.BLOCK_ELEMENTS", 4 * 130 * 7)  # blocks of a few queries
    q, k, v = (torch.randn(2, length, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    result = attention_reference(q, k, v)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(result)
    torch.testing.assert_close(
        torch.autograd.grad(result, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_the_least_bytes_are_those_of_the_tensors(operator: str, mode: str, dtype: str) -> None:
    case = small(operator, mode, dtype=dtype, batch=1, length=64, value_dim=32)
    form = operator_of(case)
    tensors = form.draw(Draw(case, 0, "cpu"))
    written = [tensors[name] for name in form.states] if operator != "attention" else []  # of a step
    made = bind(form.reference, case)(tensors)
    outputs = sum(x.nbytes for x in (made if isinstance(made, tuple) else (made,)))
    given = [x for name, x in tensors.items() if name != "position_B"]  # 4 bytes a sequence
    inputs, whole = sum(x.nbytes for x in given), sum(x.nbytes for x in given if not x.is_floating_point())
    if (operator, mode) == ("sliding_window", "decode"):  # it reads the whole ring but writes one slot
        written = [tensors["k_BHK"], tensors["v_BHV"]]
    moved = 3 * inputs - whole + 2 * outputs if mode == "fwd_bwd" else inputs + outputs + sum(x.nbytes for x in written)
    assert bytes_of(case) == moved


def test_operations_of_attention_count_the_causal_half_and_the_recomputed_scores() -> None:
    forward = 2 * 2 * sum(range(1, 41)) * 2 * (8 + 6)
    assert flops_of(small("attention", "fwd")) == forward
    assert flops_of(small("attention", "fwd_bwd")) == forward * 3.5
    assert flops_of(small("attention", "decode")) == 2 * 2 * 40 * 2 * (8 + 6)


@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_operations_grow_with_the_batch(operator: str, mode: str) -> None:
    assert flops_of(small(operator, mode, batch=6)) == 3 * flops_of(small(operator, mode, batch=2)) > 0


@pytest.mark.parametrize(("operator", "mode"), FORMS)
def test_the_reference_that_results_are_held_against_is_the_reference(operator: str, mode: str) -> None:
    """Of few sequences in long chunks, of many in its own: the same in exact arithmetic."""
    case = small(operator, mode, length=600)
    drawn = operator_of(case).draw(Draw(case, 0, "cpu"))
    tensors = {name: x.double() if x.is_floating_point() else x for name, x in drawn.items()}
    own = bind(operator_of(case).reference, case)({name: x.clone() for name, x in tensors.items()})
    for pairs in (1, 2**20):
        found = reference_call(case, pairs)({name: x.clone() for name, x in tensors.items()})
        torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-11)


def test_only_few_sequences_are_cut_into_long_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    looping = replace(operators._SEQUENCES["ssd"], reference=lambda *_, chunk=64, **__: given.append(chunk))
    monkeypatch.setitem(operators._SEQUENCES, "ssd", looping)
    case = small("ssd", "fwd", length=2**10)
    for pairs in (2**10, 2**10 + 1):
        reference_call(case, pairs)(looping.draw(Draw(case, 0, "cpu")))
    assert given == [256, 64]
