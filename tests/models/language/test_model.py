"""The language model: its algebra, and that all its forms agree."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from basedbench.errors import UserError
from basedbench.models.language import LanguageConfig, LanguageModel


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x_LHK, width, base=10_000.0):
    """Rotary written out pair by pair, position by position."""
    y, pairs = x_LHK.clone(), -(-width // 2)
    for p in range(len(x_LHK)):
        for i in range(pairs):
            angle = torch.tensor(p * base ** (-2 * i / width), dtype=x_LHK.dtype)
            a, b = x_LHK[p, :, i], x_LHK[p, :, i + pairs]
            y[p, :, i] = a * angle.cos() - b * angle.sin()
            y[p, :, i + pairs] = a * angle.sin() + b * angle.cos()
    return y


def attended(mixer, x_LD, reach):
    """Softmax attention over the last `reach` tokens and the own one, one query at a time."""
    q, k, v = (x_LD @ mixer.qkv.weight.T).view(len(x_LD), 3, mixer.heads, -1).unbind(1)
    q, k = turned(q, mixer.rotated), turned(k, mixer.rotated)
    out = torch.empty_like(v)
    for t in range(len(x_LD)):
        first = max(0, t - reach)
        scores = torch.einsum("hk,shk->hs", q[t], k[first : t + 1]) / q.shape[-1] ** 0.5
        out[t] = torch.einsum("hs,shk->hk", scores.softmax(-1), v[first : t + 1])
    return out.flatten(1) @ mixer.out_proj.weight.T


def linear_attended(mixer, x_LD, heads, features):
    """1 + s + s^2 / 2 in place of exp, normalised."""
    keys = heads * features
    q, k, v = (x_LD @ mixer.in_proj.weight.T).split((keys, keys, x_LD.shape[1]), -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    s = q @ k.mT / features**0.5
    weights = (1 + s + s.square() / 2).tril()
    return (weights @ v / weights.sum(-1, keepdim=True)).transpose(0, 1).flatten(1) @ mixer.out_proj.weight.T


def convolved(mixer, x_LD):
    u, gate = (x_LD @ mixer.in_proj.weight.T + mixer.in_proj.bias).chunk(2, -1)
    width = mixer.conv.weight.shape[1]
    y = torch.stack(
        [
            sum(mixer.conv.weight[:, width - 1 - back] * u[t - back] for back in range(min(width, t + 1)))
            for t in range(len(u))
        ]
    )
    return (F.silu(y) * gate) @ mixer.out_proj.weight.T + mixer.out_proj.bias


def test_the_based_model_is_what_its_docstrings_say(tiny, tokens):
    model, (tokens_L,) = tiny("based"), tokens(batch=1)
    r = model.embedding.weight[tokens_L]
    for block in model.blocks:
        x = rms(r, block.norm1.weight)
        if block.kind == "linear":
            r = r + linear_attended(block.mixer, x, heads=2, features=8)
        else:
            r = r + (attended(block.mixer, x, reach=5) if block.kind == "window" else convolved(block.mixer, x))
        a, b = (rms(r, block.norm2.weight) @ block.mlp.fc1.weight.T).chunk(2, -1)
        r = r + (a * F.silu(b)) @ block.mlp.fc2.weight.T
    expected = rms(r, model.norm.weight) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens_L[None])[0], expected)


def test_attention_turns_half_of_an_odd_head(tiny, tokens):
    model, (tokens_L,) = tiny("attention", layers=("attention",), mlp_inner=0), tokens(batch=1)
    (block,) = model.blocks
    assert block.mixer.rotated == 7
    e = model.embedding.weight[tokens_L]
    r = e + attended(block.mixer, rms(e, block.norm1.weight), reach=len(e))
    torch.testing.assert_close(model(tokens_L[None])[0], rms(r, model.norm.weight) @ model.embedding.weight.T)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_state_space_blocks_are_a_mixer_alone(tiny, tokens, name):
    model = tiny(name, layers=(name,))
    (block,) = model.blocks
    assert block.mlp is None
    e = model.embedding.weight[tokens()]
    r = e + block.mixer(rms(e, block.norm1.weight))
    torch.testing.assert_close(model(tokens()), rms(r, model.norm.weight) @ model.embedding.weight.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prompt", [1, 3, 9])
def test_prefill_and_steps_give_the_forward(tiny, tokens, family, prompt, dtype):
    model, tokens_BL = tiny(family, dtype), tokens()
    expected = model(tokens_BL)
    found, state = model.prefill(tokens_BL[:, :prompt], 17, logits="all")
    outputs = [*found.unbind(1)]
    for tokens_B in tokens_BL[:, prompt:].unbind(1):
        logits_BV, state = model.step(tokens_B, state)
        outputs.append(logits_BV)
    tolerance = {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(torch.stack(outputs, 1), expected, **tolerance)


@pytest.mark.parametrize("attention", ["auto", "ours"])
def test_steps_from_an_empty_state_give_the_forward(tiny, tokens, family, attention):
    model, tokens_BL = tiny(family), tokens()
    model.attention = attention
    state, outputs = model.init_state(3, 17), []
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}
    for tokens_B in tokens_BL.unbind(1):
        logits_BV, state = model.step(tokens_B, state)
        outputs.append(logits_BV)
    torch.testing.assert_close(torch.stack(outputs, 1), model(tokens_BL))
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses  # a graph would replay on these


def test_prefill_keeps_the_last_logits_only_if_asked(tiny, tokens, family):
    model = tiny(family)
    last_BV, state = model.prefill(tokens(), 20)
    every_BLV, other = model.prefill(tokens(), 20, logits="all")
    torch.testing.assert_close(last_BV, every_BLV[:, -1])
    torch.testing.assert_close(state, other)
    promised = model.init_state(3, 20)
    assert {k: (t.shape, t.dtype) for k, t in state.items()} == {k: (t.shape, t.dtype) for k, t in promised.items()}


def test_prefill_writes_into_a_given_state(tiny, tokens, family):
    """Whatever it held before."""
    model = tiny(family)
    used = model.prefill(tokens(seed=5), 20)[1]
    _, state = model.prefill(tokens(length=6), state=used)
    assert state is used
    _, fresh = model.prefill(tokens(length=6), 20)
    for tokens_B in tokens(length=4, seed=2).unbind(1):
        torch.testing.assert_close(model.step(tokens_B, state)[0], model.step(tokens_B, fresh)[0])


def test_a_batch_is_its_rows(tiny, tokens, family):
    model, tokens_BL = tiny(family), tokens()
    together, state = model.prefill(tokens_BL, 20)
    after, _ = model.step(tokens_BL[:, 0], state)
    for row in range(3):
        alone, own = model.prefill(tokens_BL[row : row + 1], 20)
        torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(model.step(tokens_BL[row : row + 1, 0], own)[0][0], after[row])


def test_causality(tiny, tokens, family):
    """A changed token changes no earlier logits, and every later one."""
    model, tokens_BL = tiny(family), tokens()
    changed_BL = tokens_BL.clone()
    changed_BL[:, 8] = (changed_BL[:, 8] + 1) % 40
    difference_L = (model(changed_BL) - model(tokens_BL)).abs().amax((0, 2))
    assert difference_L[:8].max() < 1e-12
    assert difference_L[8:].min() > 1e-9


def test_half_precision_keeps_its_stream_and_states_in_float32(config, tokens, family):
    wide, narrow = (LanguageModel(config(family), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    logits, expected = narrow(tokens()), wide(tokens())
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 0.01 * expected.norm()
    dtypes = {name.split(".")[-1]: tensor.dtype for name, tensor in narrow.init_state(1, 8).items()}
    caches = {name: torch.bfloat16 for name in ("k", "v", "conv") if name in dtypes}
    assert dtypes == dtypes | caches | ({"state": torch.float32} if "state" in dtypes else {})
    assert all(p.dtype == torch.float32 for name, p in narrow.named_parameters() if name.endswith(("A_log", ".D")))


def test_weights_start_at_the_released_scales(config):
    model = LanguageModel(config("based", d_model=128, vocab_size=512))
    stds = {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.dim() == 2}
    for name, std in stds.items():
        if "conv.weight" not in name:
            onto_stream = name.endswith(("out_proj.weight", "fc2.weight"))
            assert std == pytest.approx(0.02 / 8**0.5 if onto_stream else 0.02, rel=0.05), name
    assert not model.blocks[0].mixer.in_proj.bias.any()


def test_the_seed_decides_the_weights_and_nothing_else(config):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same, other = (LanguageModel(config("mixed"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


def test_gradients_reach_every_parameter(tiny, tokens, family):
    model = tiny(family)
    model(tokens()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"layers": ("linear",), "heads": 5}, "heads = 5 does not divide d_model = 32"),
        ({"layers": ("window",), "window_heads": 3}, "window_heads = 3"),
        ({"layers": ("mamba2",), "ssm_head_dim": 7}, "ssm_head_dim = 7"),
        ({"layers": ("window",), "heads": 32}, "window heads of 1 are turned whole"),
        ({"layers": ("attention",), "d_model": 6, "heads": 2}, "attention heads of 3 are turned whole"),
        ({"layers": ("linear",), "feature_dim": 2**31}, "feature_dim"),
        ({"layers": ()}, "layers"),
        ({"layers": ("based",)}, "layers.0"),
        ({"layers": ("conv",), "windw": 3}, "did you mean 'window'"),
        ({"layers": ("conv",), "rotary_fraction": 1.5}, "rotary_fraction"),
    ],
)
def test_bad_configs(options, part):
    with pytest.raises(UserError, match=part):
        LanguageConfig.checked(**({"vocab_size": 40, "d_model": 32} | options))


def test_a_prompt_longer_than_the_room(tiny, tokens):
    with pytest.raises(UserError, match="17 tokens does not fit into max_length = 8"):
        tiny("attention").prefill(tokens(), 8)


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back_and_brings_nothing_from_the_host(tiny, tokens, family):
    """What a CUDA graph cannot hold: values read by the host, shapes that depend on them, tensors of Python data."""
    model = tiny(family, torch.float32)
    state, tokens_B = model.init_state(3, 8), tokens()[:, 0]
    with Operators() as operators:
        model.step(tokens_B, state)
    assert "mm" in operators.names  # they are seen at all
    assert not operators.names & {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero"}


@pytest.mark.parametrize("name", ["based", "mamba", "mamba2", "mixed"])
def test_states_of_half_precision_cost_less_than_weights_of_half_precision(tiny, tokens, name):
    """Of 40 steps against the whole forward in float64; and a sequence's are the same in another place among others."""
    # Eight: a CPU takes the numbers behind whole vectors one by one, and rounds a softplus otherwise then.
    tokens_BL, errors = tokens(batch=8, length=40), {}
    exact = tiny(name)(tokens_BL)
    for state_dtype in ("fp32", "bf16"):
        model = tiny(name, torch.bfloat16, state_dtype=state_dtype)
        # As many sequences both times: a library's products of 16 bits may depend on that.
        found = [stepped(model, part_BL) for part_BL in (tokens_BL, tokens_BL.roll(-1, 0))]
        assert torch.equal(found[0].roll(-1, 0), found[1])
        errors[state_dtype] = ((found[0].double() - exact).norm() / exact.norm()).item()
    assert errors["bf16"] < 1.5 * errors["fp32"]


def stepped(model, tokens_BL):
    """Logits of steps from the empty state."""
    state, found = model.init_state(len(tokens_BL), tokens_BL.shape[1]), []
    recurrent = [tensor for name, tensor in state.items() if name.endswith(".state")]
    assert {tensor.dtype for tensor in recurrent} == {
        torch.bfloat16 if model.config.state_dtype == "bf16" else torch.float32
    }
    for tokens_B in tokens_BL.unbind(1):
        logits_BV, state = model.step(tokens_B, state)
        found.append(logits_BV)
    return torch.stack(found, 1)
