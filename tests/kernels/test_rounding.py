"""States in bfloat16: rounded up or down by chance, right on average, and never stuck."""

import pytest
import torch

from basedbench.kernels import selective_scan_step, ssd_step, taylor_attention_step
from basedbench.kernels.rounding import store
from basedbench.kernels.taylor_features import feature_count


def stored(x, count=0):
    """One sequence's state."""
    state = torch.zeros(1, len(x), dtype=torch.bfloat16)
    store(state, x[None], torch.tensor([count]))
    return state[0].float()


def test_a_sequence_is_rounded_as_it_is_alone(randn):
    x, count_B = randn(3, 4, 5).float(), torch.tensor([0, 7, 7])  # rows of 5: the last has no partner
    state = torch.zeros(3, 4, 5, dtype=torch.bfloat16)
    store(state, x, count_B)
    for sequence in range(3):
        alone = torch.zeros(1, 4, 5, dtype=torch.bfloat16)
        store(alone, x[sequence : sequence + 1], count_B[sequence : sequence + 1])
        assert torch.equal(state[sequence], alone[0])


def neighbours(x):
    """The numbers of bfloat16 below and above in size."""
    lower = (x.view(torch.int32) & -0x10000).view(torch.float32)
    return lower, (lower.view(torch.int32) + 0x10000).view(torch.float32)


def test_what_bfloat16_has_stays_as_it_is():
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, -1e-38, float("inf"), -float("inf")]).bfloat16().float()
    assert torch.equal(stored(x).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001])
def test_nan_stays_nan(bits):
    assert stored(torch.tensor([bits], dtype=torch.int32).view(torch.float32)).isnan().all()


def test_either_neighbour_and_the_number_itself_on_average():
    """2^16 places each: the mean is within four standard deviations of x, at even places, at odd ones, and whatever
    became of the other of a pair."""
    for value in (1.001, -1.003, 0.7071, 3.14159e-5, -2.71828e7):
        x = torch.full((2**17,), value)
        found, (lower, upper) = stored(x), neighbours(x)
        up = found == upper
        assert ((found == lower) | up).all()
        share = (x[0].double() - lower[0]) / (upper[0].double() - lower[0])
        even, odd = up.view(-1, 2).unbind(1)
        for ups in (even, odd, even[odd], even[~odd]):
            assert abs(ups.double().mean() - share) < 4 * (share * (1 - share) / len(ups)).sqrt()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("changes", ["number", "count"])
def test_one_place_by_and_by(changes, place):
    """Numbers between two neighbours, or one number again and again: each time up or down anew."""
    x = torch.linspace(1, 1 + 2**-7, 2**12)[1:-1]
    x = x if changes == "number" else torch.full_like(x, 1 + 2**-9)
    pairs = torch.zeros(len(x), 2)
    pairs[:, place] = x
    kept = [stored(pair, index if changes == "count" else 0) for index, pair in enumerate(pairs)]
    found = torch.stack(kept)[:, place]
    assert abs((found.double() - x.double()).mean()) < 4 * 2**-7 * 0.5 / len(x) ** 0.5


def test_a_wider_state_is_written_as_it_is(randn):
    x = randn(5, 7)
    for dtype in (torch.float64, torch.float32):
        state = torch.zeros(5, 7, dtype=dtype)
        store(state, x, None)
        assert torch.equal(state, x.to(dtype))


def test_the_constant_feature_of_taylor_attention_goes_on_summing(randn):
    """Values of 1 for 1,500 tokens: rounded to nearest their sum would stop at 256. Its sum of features is exact."""
    batch, heads, width = 1, 64, 8
    state = torch.zeros(batch, heads, feature_count(8), width, dtype=torch.bfloat16)
    sums = torch.zeros(batch, heads, feature_count(8))
    q, k, v = torch.zeros(batch, heads, 8), torch.zeros(batch, heads, 8), torch.ones(batch, heads, width)
    for token in range(1500):
        y = taylor_attention_step(q, k, v, state, sums, count_B=torch.full((batch,), token))
    assert (sums[:, :, 0] == 1500).all()
    # Beyond 256 steps of 2, beyond 512 of 4, beyond 1,024 of 8: variances of 1, 3 and 7 for each token.
    deviation = (256 + 3 * 512 + 7 * 476) ** 0.5
    assert abs(state[:, :, 0].double().mean() - 1500) < 4 * deviation / 512**0.5
    assert (state[:, :, 1:] == 0).all()
    assert (y - 1).abs().max() < 5 * deviation / 1500


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_read_what_they_have_not_rounded_yet(randn, dtype):
    """One token from the empty state: y is exact whatever the state is kept in, and the state is within a rounding."""
    q, k, v = (randn(2, 3, width).float() for width in (8, 8, 16))
    state, sums = torch.zeros(2, 3, feature_count(8), 16, dtype=dtype), torch.zeros(2, 3, feature_count(8))
    torch.testing.assert_close(taylor_attention_step(q, k, v, state, sums), v)

    u, delta, z = randn(2, 6).float(), randn(2, 6).abs().float(), randn(2, 6).float()
    A, B, C = -randn(6, 4).abs().float(), randn(2, 4).float(), randn(2, 4).float()
    found = []
    for kept in (torch.float32, dtype):
        state_BDN = torch.zeros(2, 6, 4, dtype=kept)
        found.append((selective_scan_step(u, delta, A, B, C, state_BDN, z_BD=z), state_BDN.float()))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2**-7, atol=0)

    x, dt = randn(2, 4, 8).float(), randn(2, 4).abs().float()
    B, C = randn(2, 2, 4).float(), randn(2, 2, 4).float()
    found = []
    for kept in (torch.float32, dtype):
        state_BHPN = torch.zeros(2, 4, 8, 4, dtype=kept)
        found.append((ssd_step(x, dt, -torch.ones(4), B, C, state_BHPN), state_BHPN.float()))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=2**-7, atol=0)
