"""The Gluon form of taylor_attention against float64: without a GPU interpreted, or its source run as Python."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from basedbench.kernels import taylor_gluon
from basedbench.kernels.taylor_attention import reference, taylor_attention_step
from basedbench.kernels.taylor_attention_triton import _slots_like, attention
from basedbench.kernels.taylor_features import taylor_feature_map
from basedbench.kernels.taylor_gluon_states import (
    COUNT,
    KEY_SUM,
    MOMENTS,
    REST,
    SLOT,
    final_state_kernel,
    running_sums_kernel,
)
from tests.kernels.gluon_as_python import Launcher, kernel_arguments, kernels_as_python

on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
KEYS = 16


def slot_of(k_NLK: Tensor, v_NLV: Tensor) -> Tensor:
    """Sums over tokens in the order of a slot, for up to 64 values, NaN where nothing may read."""
    v = torch.nn.functional.pad(v_NLV, (0, 64 - v_NLV.shape[-1]))
    slot = k_NLK.new_full((len(k_NLK), SLOT.value), torch.nan)
    products = torch.cat([k_NLK * k_NLK.roll(-d, -1) for d in range(8)], -1)
    opposite = k_NLK[..., :8] * k_NLK[..., 8:]
    one = torch.ones_like(opposite[..., :1])
    rest = torch.cat([k_NLK, opposite, one, torch.zeros_like(opposite[..., 1:])], -1)
    slot[:, : REST.value] = torch.einsum("ntv,ntf->nfv", v, products).flatten(1)
    slot[:, REST.value : MOMENTS.value] = torch.einsum("ntv,ntf->nfv", v, rest).flatten(1)
    slot[:, MOMENTS.value : KEY_SUM.value] = torch.einsum("nti,ntj->nij", k_NLK, k_NLK).flatten(1)
    slot[:, KEY_SUM.value : KEY_SUM.value + KEYS] = 4 * k_NLK.sum(1)
    slot[:, COUNT.value] = k_NLK.shape[1]
    return slot


def packed(k_NLK: Tensor, v_NLV: Tensor) -> Tensor:
    v = torch.cat([v_NLV, torch.ones_like(v_NLV[..., :1])], -1)
    return taylor_feature_map(k_NLK).transpose(1, 2) @ v


@pytest.mark.parametrize("with_initial", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("value_dim", "segments"), [(64, 3), (48, 6), (112, 1), (128, 2)])
def test_slots_run_from_the_packed_state_to_the_packed_state(randn, device, value_dim, segments, with_initial):
    """Segments of five tokens in two sequences; the last slot is what the serial kernel would write."""
    options = {"V": value_dim, "BLOCK": 256}
    sequences, tiles = 2, -(-value_dim // 64)
    k, v = randn(sequences, segments + 1, 5, KEYS), randn(sequences, segments + 1, 5, value_dim)
    slots = torch.full((sequences * tiles, segments + 1, SLOT.value), torch.nan, device=device)
    for s in range(1, segments):
        for tile in range(tiles):
            slots[tile::tiles, s] = slot_of(k[:, s], v[:, s, :, tile * 64 : tile * 64 + 64]).to(slots)
    initial = packed(k[:, 0], v[:, 0]).to(device, torch.float32).contiguous()
    grid = (sequences * tiles, -(-SLOT.value // 256))
    running_sums_kernel[grid](slots, initial, segments, tiles, INITIAL=with_initial, **options)
    assert not slots.isnan().any()
    first = 0 if with_initial else 1
    for s in range(segments):
        tokens = slice(first, s + 1)
        k_before, v_before = k[:, tokens].flatten(1, 2), v[:, tokens].flatten(1, 2)
        for tile in range(tiles):
            expected = slot_of(k_before, v_before[..., tile * 64 : tile * 64 + 64])
            # Values beyond the width belong to no one.
            known = ~expected.isnan() & (expected != 0)
            torch.testing.assert_close(
                slots[tile::tiles, s].double().cpu()[known], expected[known], rtol=1e-5, atol=1e-5
            )
    slots[:, segments] = slots[:, segments - 1]
    final = torch.full_like(initial, torch.nan)
    final_state_kernel[grid](slots, final, segments, tiles, **options)
    tokens = slice(first, segments)
    expected = packed(k[:, tokens].flatten(1, 2), v[:, tokens].flatten(1, 2))
    torch.testing.assert_close(final.double().cpu(), expected, rtol=1e-5, atol=1e-5)


def inputs(randn, length, value_dim, batch=1, heads=2, scale=1.0, device="cuda") -> list[Tensor]:
    """q, k, v as a mixer gives them: slices of one projection."""
    widths = [heads * KEYS, heads * KEYS, heads * value_dim]
    parts = (scale * randn(batch, length, sum(widths))).to(device, torch.bfloat16).split(widths, -1)
    return [part.unflatten(-1, (heads, -1)) for part in parts]


def in_float64(tensors, state=None) -> tuple[Tensor, Tensor]:
    exact_state = None if state is None else state.double()
    return reference(*(x.double() for x in tensors), initial_state=exact_state, return_state=True)


def worst_block(value: Tensor, exact: Tensor) -> float:
    """Relative error of the worst 64 rows of a sequence: kernels that go wrong do so after the first chunks."""
    parts = zip(value.transpose(1, 2).double().split(64, 2), exact.transpose(1, 2).split(64, 2), strict=True)
    return max(((a - b).norm(dim=(2, 3)) / b.norm(dim=(2, 3))).max().item() for a, b in parts)


def run(q, k, v, state) -> tuple[Tensor, Tensor, Tensor]:
    """The launches of the operator, also at lengths where it would pick another form."""
    batch, length, heads, value_dim = v.shape
    y = v.new_full(v.shape, torch.nan)
    inverse = v.new_full((batch, heads, length), torch.nan, dtype=torch.float32)
    final = v.new_full((batch, heads, 153, value_dim + 1), torch.nan, dtype=torch.float32)
    taylor_gluon.forward(q, k, v, state, y, inverse, final)
    return y, inverse, final


def normaliser(q, k, state) -> Tensor:
    """z (B,H,L) in float64."""
    s = torch.einsum("blhk,bmhk->bhlm", q.double(), k.double()) / 4
    z = (1 + s + s**2 / 2).tril().sum(-1)
    if state is not None:
        z += torch.einsum("blhf,bhf->bhl", taylor_feature_map(q.double()), state[..., -1].double())
    return z


def assert_right(relative_error, results, tensors, state) -> None:
    """Outputs, 1 / z and the last state, which counts the tokens, five of them behind a first state."""
    y, inverse, final = results
    exact, exact_final = in_float64(tensors, state)
    same = reference(*tensors, initial_state=state)
    assert relative_error(y, exact) <= 2 * relative_error(same, exact)
    assert worst_block(y, exact) <= 3 * worst_block(same, exact)
    assert relative_error(final, exact_final) < 4e-3
    assert (final[:, :, 0, -1] == y.shape[1] + 5 * (state is not None)).all()
    assert relative_error(1 / inverse.double(), normaliser(*tensors[:2], state)) < 2e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels themselves are tested")
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("length", "value_dim", "segment"), [(200, 48, 256), (320, 64, 128), (300, 112, 128)])
def test_forward_as_python(randn, relative_error, monkeypatch, length, value_dim, segment, with_state):
    """A tile that is not full, whole tiles, segments, two tiles of values."""
    kernels = kernels_as_python()

    def wrap(kernel) -> Launcher:
        return Launcher(kernels, lambda *arguments, **options: kernel(*kernel_arguments(arguments), **options))

    names = ("serial_kernel", "segment_sums_kernel")
    fakes = SimpleNamespace(**{name: wrap(getattr(kernels, name)) for name in names})
    cut = taylor_gluon.plan(1, length, 2, value_dim)._replace(segment=segment, segments=-(-length // segment))
    monkeypatch.setattr(taylor_gluon, "plan", lambda *_: cut)
    monkeypatch.setattr(taylor_gluon, "_map", lambda x, rows, columns: x)
    monkeypatch.setattr(taylor_gluon, "_kernels", lambda: fakes)
    monkeypatch.setattr(taylor_gluon, "ModuleType", SimpleNamespace)
    tensors = inputs(randn, length, value_dim, device="cpu")
    state = in_float64(inputs(randn, 5, value_dim, device="cpu"))[1].float() if with_state else None
    y, inverse, final = run(*tensors, state)
    assert_right(relative_error, (y, inverse, final), tensors, state)
    alone = torch.full_like(y, torch.nan)
    taylor_gluon.forward(*tensors, state, alone, None, None)
    assert torch.equal(alone, y)


@on_hopper
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "length", "value_dim"),
    [
        (1, 2, 1, 64), (1, 2, 17, 64), (3, 3, 577, 64), (1, 2, 1000, 48), (1, 2, 4097, 64), (2, 1, 4096, 112),
        (1, 2, 1025, 128), (17, 16, 641, 64), (1, 1, 1000, 16),
    ],
)  # fmt: skip
def test_outputs_normaliser_and_state(randn, relative_error, batch, heads, length, value_dim, with_state):
    tensors = inputs(randn, length, value_dim, batch, heads)
    state = in_float64(inputs(randn, 5, value_dim, batch, heads))[1].float() if with_state else None
    assert taylor_gluon.unsupported(*tensors) is None
    poison = torch.full((1 << 24,), float("nan"), device="cuda")
    del poison
    y, inverse, final = run(*tensors, state)
    assert_right(relative_error, (y, inverse, final), tensors, state)
    assert relative_error(final[..., -1], in_float64(tensors, state)[1][..., -1]) < 1e-4
    again = run(*tensors, state)
    assert all(torch.equal(a, b) for a, b in zip((y, inverse, final), again, strict=True))


@on_hopper
def test_many_short_segments(randn, relative_error, monkeypatch):
    """Segments far shorter than usual, the last one shorter still."""
    monkeypatch.setattr(taylor_gluon, "SHORTEST_SEGMENT", 128)
    tensors = inputs(randn, 4037, 64)
    assert taylor_gluon.plan(1, 4037, 2, 64).segments > 8
    y, _, final = run(*tensors, None)
    exact, exact_final = in_float64(tensors)
    assert relative_error(y, exact) <= 2 * relative_error(reference(*tensors), exact)
    assert relative_error(final, exact_final) < 4e-3


@on_hopper
def test_the_operator_takes_it_and_its_gradients_follow(randn, relative_error):
    tensors = [x.detach().requires_grad_() for x in inputs(randn, 1100, 64)]
    y = attention(*tensors, None, False, "bf16")[0]
    exact_tensors = [x.detach().double().requires_grad_() for x in tensors]
    exact = reference(*exact_tensors)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, tensors, dy)
    torch.library.opcheck(attention, (*tensors, None, False, "bf16"))
    for a, b in zip(ours, torch.autograd.grad(exact, exact_tensors, dy.double()), strict=True):
        assert relative_error(a, b) < 5e-3


@on_hopper
def test_a_prefix_and_many_steps_give_the_whole(randn, relative_error):
    tensors = inputs(randn, 600 + 4096, 64)
    _, _, state = run(*(x[:, :600] for x in tensors), None)
    columns = state[..., :-1], state[..., -1]
    steps = [taylor_attention_step(*(x[:, t] for x in tensors), *columns) for t in range(600, 4696)]
    exact, exact_state = in_float64(tensors)
    assert relative_error(torch.stack(steps, 1), exact[:, 600:]) < 4e-3
    assert relative_error(state[..., -1], exact_state[..., -1]) < 1e-5
    assert (state[:, :, 0, -1] == 4696).all()


@on_hopper
def test_what_it_leaves_to_the_plain_kernels(randn):
    q, k, v = inputs(randn, 600, 64)
    assert "bf16" in taylor_gluon.unsupported(q.half(), k.half(), v.half())
    assert "bf16" in taylor_gluon.unsupported(q[..., :8], k[..., :8], v)
    assert "16 bytes" in taylor_gluon.unsupported(
        *(torch.cat([x, x[..., :4]], -1)[..., : x.shape[-1]] for x in (q, k, v))
    )
    assert "16 bytes" in taylor_gluon.unsupported(q, k, v.transpose(2, 3).contiguous().transpose(2, 3))


def test_the_plan_fills_the_device_once():
    assert taylor_gluon.plan(16, 32768, 16, 64).segments == 1
    assert taylor_gluon.plan(2, 32768, 16, 64)[2:4] == (4096, 8)
    assert taylor_gluon.plan(1, 131072, 16, 64)[2:4] == (8192, 16)
    assert taylor_gluon.plan(1, 4037, 1, 64)[2:4] == (640, 7)
    assert taylor_gluon.plan(1, 1, 1, 128)[2:] == (128, 1, 2, 2)


def test_states_are_kept_for_a_backward_with_several_segments():
    def kept(length, key_dim=16, value_dim=64, dtype=torch.bfloat16, kept=True) -> tuple[int, ...]:
        q, v = (torch.empty(2, length, 16, width, dtype=dtype, device="meta") for width in (key_dim, value_dim))
        return tuple(_slots_like(q, v, kept).shape)

    assert kept(32768) == (32, 9, SLOT.value)
    nothing = kept(600), kept(32768, 8), kept(32768, 16, 112), kept(32768, dtype=torch.float16), kept(32768, kept=False)
    assert set(nothing) == {(0,)}
