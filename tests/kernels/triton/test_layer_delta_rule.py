"""The Triton kernels of the delta rule as layers have it against its reference in float64, beside the one in bfloat16.

The recurrence itself: tests/kernels/test_layer_delta_rule.py.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from basedbench.kernels import layer_delta_rule_triton as triton_form
from basedbench.kernels.delta_rule_step_triton import step
from tests.kernels.interpreted_bfloat16 import repaired
from tests.kernels.triton.test_delta_rule import error, worst_rows

module = importlib.import_module("basedbench.kernels.layer_delta_rule")  # the package has a function of its name
reference = module.reference

NAMES = ("q", "k", "v", "beta", "g", "state")
FINE = 5e-4
ALONE = 2e-3  # of one token all numbers have the same weight, which is rounded once
# What is float32: products of rounded factors. Sums of either sign in the gradients of step sizes and decays.
COARSE = {"last": 1e-2, "state": 1e-2, "beta": 1e-2, "g": 1e-2}
DECAYS = ["none", "head", "channel"]

# batch, length, heads, K, V: chunks that are full and not, one and several, padded widths, blocks of values.
SMALL = [(1, 1, 1, 16, 16), (1, 17, 2, 16, 48), (2, 33, 1, 48, 80), (1, 100, 1, 64, 64), (1, 64, 1, 32, 128)]
SMALL += [(1, 31, 5, 8, 24), (2, 32, 3, 24, 8), (1, 65, 1, 40, 72)]
WIDE = [(1, 40, 1, 128, 128), (1, 33, 1, 100, 16)]
ON_A_GPU = [(2, 1000, 4, 64, 64), (2, 4097, 2, 64, 128), (2, 2048, 2, 32, 64), (2, 1000, 2, 128, 256)]


@pytest.fixture(autouse=True)
def as_on_a_gpu(device):
    """Freed memory full of NaN, and bfloat16 without a GPU as with one."""
    freed = [torch.full((size,), float("nan"), device=device) for size in (1 << 10, 1 << 16, 1 << 22)]
    del freed
    if device.type == "cuda":
        yield
        return
    with repaired():
        yield


def inputs(randn, device, shape, decays, *, strength=0.2) -> list:
    """In the order of NAMES, None for what there is not; q, k and v are slices of one projection."""
    batch, length, heads, key_dim, value_dim = shape
    q, k, v = randn(batch, length, heads, 2 * key_dim + value_dim).to(device).split([key_dim, key_dim, value_dim], -1)
    wide = torch.cat([F.normalize(x, dim=-1) for x in (q, k)] + [v], -1).bfloat16()
    q, k, v = wide.split([key_dim, key_dim, value_dim], -1)
    beta = randn(batch, length, heads).float().sigmoid().to(device)
    g = None
    if decays != "none":
        g = -strength * randn(batch, length, heads, 1 if decays == "head" else key_dim).abs().float().to(device)
    return [q, k, v, beta, g, randn(batch, heads, key_dim, value_dim).float().to(device)]


def outputs_and_gradients(function, tensors, signs) -> dict[str, Tensor]:
    leaves = [x if x is None else x.detach().requires_grad_() for x in tensors]
    given = {name: leaf for name, leaf in zip(NAMES, leaves, strict=True) if leaf is not None}
    outputs = function(*leaves[:-1], initial_state=leaves[-1], return_state=True)
    found = torch.autograd.grad(
        outputs, list(given.values()), [sign.to(y.dtype) for sign, y in zip(signs, outputs, strict=True)]
    )
    return {"y": outputs[0].detach(), "last": outputs[1].detach()} | dict(zip(given, found, strict=True))


def doubled(tensors) -> list:
    return [x if x is None else x.double() for x in tensors]


def compare(randn, tensors) -> None:
    (batch, _, heads, key_dim), value_dim = tensors[0].shape, tensors[2].shape[-1]
    signs = [randn(*s).sign().to(tensors[0].device) for s in (tensors[2].shape, (batch, heads, key_dim, value_dim))]
    ours = outputs_and_gradients(triton_form.layer_delta_rule, tensors, signs)
    theirs = outputs_and_gradients(reference, tensors, signs)
    truth = outputs_and_gradients(reference, doubled(tensors), signs)
    for name, value in ours.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape), name
        floor = COARSE.get(name, ALONE if tensors[0].shape[1] == 1 else FINE)
        limit = 2 * error(theirs[name], truth[name]) + floor
        assert error(value, truth[name]) <= limit, (name, error(value, truth[name]), limit)
        if name not in ("last", "state"):
            limit = 3 * worst_rows(theirs[name], truth[name]) + 2 * floor
            assert worst_rows(value, truth[name]) <= limit, (name, worst_rows(value, truth[name]), limit)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_outputs_states_and_gradients(randn, device, shape, decays):
    compare(randn, inputs(randn, device, shape, decays))


@pytest.mark.slow
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_wide_keys(randn, device, shape, decays):
    compare(randn, inputs(randn, device, shape, decays))


@pytest.mark.parametrize("decays", ["head", "channel"])
def test_mild_and_strong_chunks(randn, device, decays):
    """The first chunk is mild; the second has tokens and channels that lose everything, the third a -inf besides."""
    tensors = inputs(randn, device, (1, 96, 1, 16, 16), decays)
    g = tensors[4]
    g[:, 35:64:7] -= 20
    g[:, 50:54, :, ::2] -= 1000
    g[:, 70, :, ::3] = float("-inf")
    compare(randn, tensors)


def test_decays_over_chunks_are_written_once(randn, device, monkeypatch):
    """A warp that is late may still read them when another one has gone on: who takes a chunk must not change."""
    kernel, found = triton_form.channel_scores_kernel, []

    class Watched:
        def __getitem__(self, grid):
            def launch(*given, **constants):
                kernel[grid](*given, **constants)
                found.append(given[5].clone())

            return launch

    monkeypatch.setattr(triton_form, "channel_scores_kernel", Watched())
    tensors = inputs(randn, device, (1, 64, 2, 32, 16), "channel", strength=3.0)
    triton_form.layer_delta_rule(*tensors[:5])
    first, last = found
    assert (first.amin(1) < 2.0**-120).any()
    assert torch.equal(first, last)


@pytest.mark.parametrize("decays", DECAYS)
def test_keys_of_zeros_and_step_sizes_of_zero_and_one(randn, device, decays):
    """Keys are taken as they are: of norm 0, 1 and a little above."""
    tensors = inputs(randn, device, (1, 45, 1, 16, 16), decays)
    tensors[1] = 1.2 * tensors[1]
    tensors[1][:, ::3] = 0
    tensors[3][:, ::4], tensors[3][:, 1::4] = 0, 1
    compare(randn, tensors)


@pytest.mark.parametrize("decays", ["head", "channel"])
def test_what_is_forgotten_at_once(randn, device, decays):
    """Decays of e^-20 and more at every token: all that is left is a token's own."""
    tensors = inputs(randn, device, (1, 40, 1, 16, 16), decays, strength=0)
    tensors[4] -= 20 + randn(*tensors[4].shape).abs().to(tensors[4])
    found = triton_form.layer_delta_rule(*tensors[:5])
    q, k, v, beta = (x.double() for x in tensors[:4])
    exact = beta.unsqueeze(-1) * (q * k).sum(-1, keepdim=True) * v
    assert error(found, exact) < 4e-3


def test_one_key_whose_values_replace_each_other(randn, device):
    """beta = 1 and the same key: y is the newest value. Powers of what a chunk's inverse is made of would explode."""
    _, k, v, beta, *_ = inputs(randn, device, (1, 70, 1, 16, 16), "none")
    k = torch.zeros_like(k)
    k[..., 3] = 1
    found = triton_form.layer_delta_rule(k, k, v, torch.ones_like(beta))
    assert error(found, v.double()) < 3e-3


@pytest.mark.parametrize("decays", ["none", "channel"])
def test_prefix_and_rest_give_the_whole_and_so_do_steps(randn, device, decays):
    *tensors, _ = inputs(randn, device, (1, 50, 2, 16, 16), decays)
    whole, last = triton_form.layer_delta_rule(*tensors, return_state=True)
    parts = [[x if x is None else x[:, rows] for x in tensors] for rows in (slice(23), slice(23, None))]
    _, state = triton_form.layer_delta_rule(*parts[0], return_state=True)
    own = state.clone()
    tail, end = triton_form.layer_delta_rule(*parts[1], initial_state=state, return_state=True)
    assert error(tail, whole[:, 23:].double()) < 5e-3
    assert error(end, last.double()) < 5e-3
    q, k, v, beta, g = parts[1]
    y = [step(q[:, t], k[:, t], v[:, t], beta[:, t], None, g if g is None else g[:, t], own) for t in range(27)]
    assert error(torch.stack(y, 1), whole[:, 23:].double()) < 5e-3
    assert error(own, last.double()) < 5e-3


def test_without_states_and_run_to_run(randn, device):
    """No state in, none out; the same numbers every time; and step sizes and decays in bfloat16."""
    tensors = inputs(randn, device, (1, 40, 2, 16, 16), "head")[:5]
    tensors[3], tensors[4] = tensors[3].bfloat16(), tensors[4].bfloat16()
    found = []
    for function in (triton_form.layer_delta_rule, triton_form.layer_delta_rule, reference):
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = function(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)])
    for one, two, theirs in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert one.dtype == theirs.dtype
        assert error(one, theirs.double()) < 1e-2


@pytest.mark.parametrize("decays", DECAYS)
def test_gradients_through_the_last_state_alone(randn, device, decays):
    tensors = [x for x in inputs(randn, device, (1, 20, 1, 16, 16), decays)[:5] if x is not None]
    found = []
    for function, parts in ((triton_form.layer_delta_rule, tensors), (reference, doubled(tensors))):
        leaves = [part.detach().requires_grad_() for part in parts]
        state = function(*leaves, return_state=True)[1]
        found.append(torch.autograd.grad(state.sum(), leaves[1:]))
    for ours, exact in zip(*found, strict=True):
        assert error(ours, exact) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow to interpret")
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("shape", ON_A_GPU, ids=str)
def test_long_and_wide(randn, device, shape, decays):
    compare(randn, inputs(randn, device, shape, decays))


@pytest.mark.parametrize("decays", DECAYS)
def test_decode_steps(randn, device, decays):
    *tensors, state = inputs(randn, device, (2, 3, 2, 24, 48), decays)
    tensors = [x if x is None else x.float() for x in tensors]
    own = state.clone()
    y = [
        step(*(x[:, t] for x in tensors[:4]), None, None if tensors[4] is None else tensors[4][:, t], own)
        for t in range(3)
    ]
    exact, last = reference(*doubled(tensors), initial_state=state.double(), return_state=True)
    assert error(torch.stack(y, 1), exact) < 1e-6
    assert error(own, last) < 1e-6


def test_operators_keep_torchs_rules(randn, device):
    """Schema, fake tensors and autograd registration."""
    for decays in DECAYS:
        given = inputs(randn, device, (1, 17, 1, 16, 16), decays)
        leaves = [x if x is None else x.detach().requires_grad_() for x in given]
        torch.library.opcheck(triton_form.forward, (*leaves, True, True))
    torch.library.opcheck(triton_form.forward, (*leaves[:4], None, None, False, True))


def test_what_the_kernels_leave_to_others(randn, device):
    q, k, v, beta, g, state = inputs(randn, device, (1, 3, 2, 16, 8), "channel")
    refuse = triton_form.unsupported
    assert refuse(q, k, v, beta, g, state) is None
    assert refuse(q, k, v, beta, None, None) is None
    assert "bfloat16" in refuse(q, k.half(), v, beta)
    assert "float16" in refuse(q, k, v, beta, g, state.double())
    assert "one a channel" in refuse(q, k, v, beta, g[..., :3])
    assert "wide" in refuse(*(x.repeat(1, 1, 1, 9) for x in (q, k)), v, beta)
    assert "nothing" in refuse(q[:0], k[:0], v[:0], beta[:0])
