"""Greedy generation: the argmax of full forwards, however it is called and replayed."""

import pytest
import torch

from basedbench.errors import UserError
from basedbench.models.language import Generator

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def greedy(model, tokens_BL, count):
    """Token by token through the whole forward."""
    with torch.no_grad():
        for _ in range(count):
            tokens_BL = torch.cat((tokens_BL, model(tokens_BL)[:, -1:].argmax(-1)), 1)
    return tokens_BL[:, -count:]


def test_generation_is_greedy_on_full_forwards(tiny, tokens, family):
    model, prompt_BL = tiny(family), tokens(length=7)
    generator = Generator(model, 3, 20)
    generator.prefill(prompt_BL)
    found = torch.cat((generator.generate(5), generator.generate(1), generator.generate(7)), 1)
    expected = greedy(model, prompt_BL, 13)
    assert len(expected.unique()) > 3  # a model that repeats itself would prove little
    assert torch.equal(found, expected)
    assert torch.equal(generator.tokens_BL, torch.cat((prompt_BL, expected), 1))


def test_a_generator_can_be_used_again(tiny, tokens, family):
    model, generator = tiny(family), Generator(tiny(family), 3, 20)
    for seed in (1, 2):
        prompt_BL = tokens(length=9, seed=seed)
        logits_BV = generator.prefill(prompt_BL)
        torch.testing.assert_close(logits_BV, model(prompt_BL)[:, -1])
        assert torch.equal(generator.generate(6), greedy(model, prompt_BL, 6))


def test_starting_without_a_prompt(tiny, tokens, family):
    model, first_B = tiny(family), tokens()[:, 0]
    generator = Generator(model, 3, 8)
    generator.start(first_B)
    assert torch.equal(generator.generate(8), torch.cat((first_B[:, None], greedy(model, first_B[:, None], 7)), 1))


def test_limits(tiny, tokens):
    generator = Generator(tiny("attention"), 3, 10)
    with pytest.raises(UserError, match="a prompt of 17 tokens does not fit into max_length = 10"):
        generator.prefill(tokens())
    with pytest.raises(UserError, match="3 sequences, not 2"):
        generator.prefill(tokens(batch=2, length=4))
    generator.prefill(tokens(length=4))
    generator.generate(6)
    with pytest.raises(UserError, match="1 tokens behind 10"):
        generator.generate(1)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("state_dtype", ["fp32", "bf16"])
def test_a_graph_gives_the_same_tokens(tiny, tokens, family, state_dtype):
    model, prompt_BL = tiny(family, torch.float32, state_dtype=state_dtype).cuda(), tokens(length=7).cuda()
    found = []
    for graph in (True, False):
        generator = Generator(model, 3, 40, graph=graph)
        generator.prefill(prompt_BL)
        found.append(torch.cat((generator.generate(3), generator.generate(30)), 1))
    assert torch.equal(*found)
    assert len(found[0].unique()) > 3


@pytest.mark.gpu
@CUDA
def test_a_graph_cannot_follow_a_length_of_the_host(tiny):
    model = tiny("attention", torch.bfloat16).cuda()
    model.attention = "sdpa-flash"
    with pytest.raises(UserError, match="graph=False"):
        Generator(model, 3, 40)
