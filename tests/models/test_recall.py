"""The recall scaffold: its algebra, its parameters, and decoding."""

import pytest
import torch

from basedbench.errors import UserError
from basedbench.kernels.asked import questions_at
from basedbench.models import LayerSpec, RecallModel

VOCAB, D, L = 48, 16, 21
MAMBA2 = LayerSpec("mamba2", {"head_dim": 8, "d_state": 4})
BASED = LayerSpec("based", {"feature_dim": 4})
ATTENTION = LayerSpec("attention", {"dropout": 0.0})
WINDOW = LayerSpec("sliding_window", {"window": 5})
CONV = LayerSpec("base_conv")
HYBRIDS = {
    "recipe": [CONV, BASED],
    "mamba": [LayerSpec("mamba"), LayerSpec("mamba")],
    "mixed": [MAMBA2, ATTENTION, CONV, LayerSpec("mamba"), BASED],
    "window last": [ATTENTION, LayerSpec("linear_attention"), MAMBA2, WINDOW],
}


def build(layers, dtype=torch.float64, **options):
    """A model whose norms are not trivial either."""
    torch.manual_seed(0)
    model = RecallModel(VOCAB, D, layers, **options).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def tokens(batch=3, length=L):
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def rms_norm(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


def test_layer_norm_blocks_add_a_second_norm_to_the_stream():
    """r1 = e + m0(LN e);  r2 = r1 + LN2(r1);  r3 = r2 + m1(LN r2);  out = E LN_f(r3 + LN2(r3))."""
    model = build([CONV, ATTENTION])
    first, second = model.blocks
    e = model.head_weight[tokens()]
    r1 = e + first.mixer(layer_norm(e, first.norm1))
    r2 = r1 + layer_norm(r1, first.norm2)
    r3 = r2 + second.mixer(layer_norm(r2, second.norm1))
    out = layer_norm(r3 + layer_norm(r3, second.norm2), model.norm) @ model.head_weight.T
    torch.testing.assert_close(model(tokens()), out)


def test_mamba_blocks_add_their_output_only():
    """r1 = e + m0(RMS e);  r2 = r1 + m1(RMS r1);  out = E LN_f(r2)."""
    model = build([LayerSpec("mamba"), MAMBA2])
    first, second = model.blocks
    e = model.head_weight[tokens()]
    r1 = e + first.mixer(rms_norm(e, first.norm))
    r2 = r1 + second.mixer(rms_norm(r1, second.norm))
    torch.testing.assert_close(model(tokens()), layer_norm(r2, model.norm) @ model.head_weight.T)


def test_blocks_of_both_kinds_mix():
    model = build([MAMBA2, BASED, LayerSpec("mamba")])
    one, two, three = model.blocks
    e = model.head_weight[tokens()]
    r = e + one.mixer(rms_norm(e, one.norm))
    r = r + two.mixer(layer_norm(r, two.norm1))
    r = r + layer_norm(r, two.norm2)
    r = r + three.mixer(rms_norm(r, three.norm))
    torch.testing.assert_close(model(tokens()), layer_norm(r, model.norm) @ model.head_weight.T)


def test_dropout_falls_on_the_embedding_alone():
    model = build([CONV, BASED], embed_dropout=0.4)
    model.set_generator(torch.Generator().manual_seed(3))
    trained = model.train()(tokens())
    mask = torch.empty(3, L, D, dtype=torch.float64).bernoulli_(0.6, generator=torch.Generator().manual_seed(3))
    first, second = model.blocks
    e = model.head_weight[tokens()] * mask / 0.6
    r = e + first.mixer(layer_norm(e, first.norm1))
    r = r + layer_norm(r, first.norm2)
    r = r + second.mixer(layer_norm(r, second.norm1))
    r = r + layer_norm(r, second.norm2)
    torch.testing.assert_close(trained, layer_norm(r, model.norm) @ model.head_weight.T)


def test_mamba_trains_without_dropout():
    model = build([LayerSpec("mamba"), LayerSpec("mamba")])
    assert torch.equal(model.train()(tokens()), model(tokens()))


def test_one_generator_makes_training_reproducible():
    model = build([CONV, LayerSpec("attention")])
    runs = []
    for seed in (1, 1, 2):
        model.set_generator(torch.Generator().manual_seed(seed))
        torch.rand(seed)
        runs.append(model.train()(tokens()))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_head_at_chosen_positions():
    model = build([CONV, BASED])
    positions_BK = torch.tensor([[3, 0, 20], [5, 5, 1], [7, 8, 9]])
    expected = torch.stack([model(tokens())[row, positions] for row, positions in enumerate(positions_BK)])
    torch.testing.assert_close(model(tokens(), positions_BK), expected)
    torch.testing.assert_close(model.prefill(tokens(), positions_BK=positions_BK)[0], expected)
    hidden = model.hidden(tokens(), questions_at(positions_BK, L))
    assert hidden.shape == (3, 3, D)
    torch.testing.assert_close(hidden @ model.head_weight.T, expected)


@pytest.mark.parametrize("layers", HYBRIDS.values(), ids=HYBRIDS)
@pytest.mark.parametrize("reserve", [None, L + 4])
def test_decoding_equals_the_parallel_form(layers, reserve):
    model = build(layers)
    with torch.inference_mode():
        expected = model(tokens())
        head, state = model.prefill(tokens()[:, :9], reserve)
        tail = []
        for tokens_B in tokens()[:, 9:].unbind(1):
            logits_BV, state = model.step(tokens_B, state)
            tail.append(logits_BV)
    torch.testing.assert_close(torch.cat((head, torch.stack(tail, 1)), 1), expected)
    if reserve:
        promised = model.init_state(3, reserve, torch.float64)
        assert {k: (t.shape, t.dtype) for k, t in state.items()} == {k: (t.shape, t.dtype) for k, t in promised.items()}


@pytest.mark.parametrize("layers", HYBRIDS.values(), ids=HYBRIDS)
def test_decoding_from_nothing(layers):
    model = build(layers)
    with torch.inference_mode():
        state, outputs = model.init_state(3, L, torch.float64), []
        for tokens_B in tokens().unbind(1):
            logits_BV, state = model.step(tokens_B, state)
            outputs.append(logits_BV)
        torch.testing.assert_close(torch.stack(outputs, 1), model(tokens()))


def test_state_names_carry_the_layer():
    layers = [BASED] * 10 + [ATTENTION, ATTENTION]
    state = build(layers).init_state(2, 8)
    based = {f"{i}.{n}" for i in range(10) for n in ("state", "sums")}
    assert set(state) == based | {f"{i}.{n}" for i in (10, 11) for n in ("k", "v", "position")}


def conv_parameters(d):
    return 3 * d + d + d * d + d


@pytest.mark.parametrize(
    ("layers", "mixers"),
    [
        ([CONV, ATTENTION], conv_parameters(D) + 4 * D * D + 4 * D),
        ([CONV, WINDOW], conv_parameters(D) + 4 * D * D + 4 * D),
        ([CONV, BASED], conv_parameters(D) + 2 * D * 4 + 2 * D * D),
        ([CONV, LayerSpec("based", {"feature_dim": 4, "window": 3})], conv_parameters(D) + 2 * D * 4 + 5 * D * D),
        ([CONV, LayerSpec("linear_attention")], conv_parameters(D) + 2 * D * 16 + 2 * D * D),
    ],
)
def test_parameters(layers, mixers):
    assert build(layers).parameters_count() == VOCAB * D + mixers + 2 * 2 * 2 * D + 2 * D


def test_parameters_of_mamba():
    """d 64, N 16: rank 4, 128 channels; in, conv, x, dt, A, D, out, and one RMSNorm a layer."""
    layer = 64 * 256 + 128 * 5 + 128 * 36 + 4 * 128 + 128 + 128 * 16 + 128 + 128 * 64 + 64
    assert RecallModel(VOCAB, 64, [LayerSpec("mamba")] * 2).parameters_count() == VOCAB * 64 + 2 * layer + 128


def test_parameters_of_mamba2():
    """d 64, N 16: 2 heads; in to [z, x, B, C, dt], conv over 160 channels, dt_bias, A, D, norm, out, one RMSNorm."""
    layer = 64 * (128 + 160 + 2) + 160 * 5 + 3 * 2 + 128 + 128 * 64 + 64
    assert RecallModel(VOCAB, 64, [LayerSpec("mamba2")] * 2).parameters_count() == VOCAB * 64 + 2 * layer + 128


def test_head_and_embedding_are_one():
    model = build([CONV, BASED])
    model(tokens()).square().sum().backward()
    absent = [v for v in range(VOCAB) if v not in tokens()]
    assert absent
    assert model.head_weight.grad[absent].norm() > 0  # by way of the head
    assert model.head_weight is model.embedding.weight


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [
        ((VOCAB, D, []), {}, "at least one layer"),
        ((0, D, [CONV]), {}, "vocab_size = 0"),
        ((VOCAB, D, [CONV]), {"init": "publised"}, "'published'"),
        ((VOCAB, D, [CONV]), {"embed_dropout": 1.5}, "1.5"),
        ((VOCAB, D, [LayerSpec("bassed")]), {}, "'based'"),
        ((VOCAB, D, [LayerSpec("based", {"heads": 3})]), {}, "heads = 3"),
        ((VOCAB, D, [LayerSpec("based", {"d_model": 3})]), {}, "'d_model'"),
        ((VOCAB, -2, [CONV]), {}, "d_model = -2"),
    ],
)
def test_bad_models(arguments, options, part):
    with pytest.raises(UserError, match=part):
        RecallModel(*arguments, **options)
