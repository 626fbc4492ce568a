"""Decoding against a cache: every implementation against softmax attention written out."""

import pytest
import torch

from basedbench.errors import UserError
from basedbench.models.language.attention_step import IMPLEMENTATIONS, attention_step, resolve

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE_LENGTH = [name for name in IMPLEMENTATIONS if name != "sdpa-flash"]
LENGTHS = [1, 5, 23]


def draw(head_dim, room=23, device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, head_dim), (3, room, 2, head_dim), (3, room, 2, head_dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def expected(q_BHK, k_BLHK, v_BLHV, lengths):
    rows = []
    for q, k, v, length in zip(q_BHK.double(), k_BLHK.double(), v_BLHV.double(), lengths, strict=True):
        scores = torch.einsum("hk,lhk->hl", q, k[:length]) / q.shape[-1] ** 0.5
        rows.append(torch.einsum("hl,lhv->hv", scores.softmax(-1), v[:length]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["auto", "ours"])
def test_only_the_tokens_in_the_cache_count(name):
    q, k, v = draw(14)
    before = k.clone(), v.clone()
    y = attention_step(q, k, v, torch.tensor(LENGTHS, dtype=torch.int32), implementation=name)
    torch.testing.assert_close(y, expected(q, k, v, LENGTHS))
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("head_dim", [64, 70, 128])
@pytest.mark.parametrize("name", DEVICE_LENGTH)
def test_implementations_agree(name, head_dim):
    q, k, v = draw(head_dim, device="cuda", dtype=torch.bfloat16)
    if name in ("sdpa-cudnn", "sdpa-efficient") and head_dim % 8:
        pytest.skip("takes heads that are a multiple of 8 wide")
    y = attention_step(q, k, v, torch.tensor(LENGTHS, dtype=torch.int32, device="cuda"), implementation=name)
    torch.testing.assert_close(y.double(), expected(q, k, v, LENGTHS), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("name", DEVICE_LENGTH)
def test_one_graph_serves_every_length(name):
    q, k, v = draw(64, device="cuda", dtype=torch.bfloat16)
    length_B = torch.ones(3, dtype=torch.int32, device="cuda")
    attention_step(q, k, v, length_B, implementation=name)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = attention_step(q, k, v, length_B, implementation=name)
    for lengths in (LENGTHS, [7, 8, 9]):
        length_B.copy_(torch.tensor(lengths))
        graph.replay()
        torch.testing.assert_close(y.double(), expected(q, k, v, lengths), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("head_dim", [64, 70])
def test_flash_reads_the_first_keys(head_dim):
    q, k, v = draw(head_dim, device="cuda", dtype=torch.bfloat16)
    length_B = torch.full((3,), 9, dtype=torch.int32, device="cuda")
    y = attention_step(q, k, v, length_B, implementation="sdpa-flash", extent=9)
    torch.testing.assert_close(y.double(), expected(q, k, v, [9] * 3), rtol=2e-2, atol=2e-2)


def test_flash_needs_the_length_from_the_host():
    with pytest.raises(UserError, match="give `extent`"):
        attention_step(*draw(8), torch.ones(3, dtype=torch.int32), implementation="sdpa-flash")


def test_names():
    assert resolve("auto", "cpu") == "sdpa-math"
    assert resolve("auto", "cuda") in DEVICE_LENGTH
    with pytest.raises(UserError, match="did you mean 'sdpa-flash'"):
        resolve("sdpa-flsh", "cpu")


def test_a_model_says_which_it_uses(tiny, tokens):
    model = tiny("attention")
    assert model.attention == "sdpa-math"
    model.attention = "sdpa-flash"
    state = model.init_state(3, 8)
    with pytest.raises(UserError, match="sdpa-flash"):
        model.step(tokens()[:, 0], state)
    with pytest.raises(UserError, match="unknown attention implementation 'flash'"):
        model.attention = "flash"
