"""Counter-based randomness: known streams, exact algorithms against plain Python, and the laws they should follow."""

import math

import pytest
import torch
from scipy import stats

from basedbench.tasks.random import below, distinct, example_states, exponential, random_bits, stream_key

LEAST_P = 1e-4  # seeds are fixed: a test that passes once passes always


def bits(rows: int, columns: int, name: str) -> torch.Tensor:
    return random_bits(example_states(stream_key(name), 0, rows), 0, columns)


def test_a_stream_is_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    words = random_bits(torch.tensor([1234567]), 0, 5)[0].tolist()
    assert [word % 2**64 for word in words] == published


def test_draws_are_addressed_by_number():
    states = example_states(stream_key("address"), 0, 3)
    assert torch.equal(random_bits(states, 7, 5), random_bits(states, 0, 12)[:, 7:])


def test_examples_are_addressed_by_index():
    key = stream_key("address")
    assert torch.equal(example_states(key, 40, 10), example_states(key, 0, 50)[40:])
    assert example_states(key, 0, 100_000).unique().numel() == 100_000


def test_keys_tell_values_and_their_order_apart():
    keys = [stream_key(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), ("a", 0), ("0", "a"), (0.5, "a"))]
    assert len(set(keys)) == len(keys)
    assert stream_key(0, "a") == keys[0]


def test_every_bit_is_fair_and_neighbours_are_independent():
    words = bits(2000, 50, "fair")
    ones = torch.stack([(words >> place) & 1 for place in range(64)]).double()
    n = words.numel()
    assert (ones.mean((1, 2)) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(n)
    for same in (ones[:, :, 1:] == ones[:, :, :-1], ones[:, 1:] == ones[:, :-1], ones[1:] == ones[:-1]):
        assert (same.double().mean((1, 2)) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(n * 0.9)


@pytest.mark.parametrize("bound", [1, 2, 7, 96, 4095])
def test_below_is_uniform(bound: int):
    counts = torch.bincount(below(bits(1000, 200, "below"), bound).flatten(), minlength=bound)
    assert len(counts) == bound
    if bound > 1:
        assert stats.chisquare(counts).pvalue > LEAST_P


def shuffle_prefix(row: list[int], bound: int) -> list[int]:
    places = list(range(bound))
    for i, word in enumerate(row):
        j = i + (word % 2**63) % (bound - i)
        places[i], places[j] = places[j], places[i]
    return places[: len(row)]


@pytest.mark.parametrize(("bound", "count"), [(1, 1), (5, 5), (9, 4), (16, 16), (64, 33), (4095, 4)])
def test_distinct_is_a_fisher_yates_shuffle(bound: int, count: int):
    words = bits(200, count, "shuffle")
    assert distinct(words, bound).tolist() == [shuffle_prefix(row, bound) for row in words.tolist()]


def test_every_ordered_sample_is_equally_likely():
    drawn = distinct(bits(120_000, 3, "ordered"), 6)
    counts = torch.bincount((drawn * torch.tensor([36, 6, 1])).sum(1))
    counts = counts[counts > 0]
    assert len(counts) == 6 * 5 * 4
    assert stats.chisquare(counts).pvalue > LEAST_P


def minus_log_in_plain_floats(word: int) -> float:
    """The same formula in Python's own floats: no vector units, no fused multiply-add."""
    n = (word % 2**64 >> 11) | 1
    exponent = n.bit_length() - 1
    m = n / 2.0**exponent
    if m >= math.sqrt(0.5) * 2:
        m, exponent = m / 2, exponent + 1
    s = (m - 1.0) / (m + 1.0)
    square, series = s * s, 1.0 / 21
    for odd in range(19, 0, -2):
        series = series * square + 1.0 / odd
    return (53 - exponent) * 0.6931471805599453 - series * s * 2.0


def test_exponential_is_correctly_rounded_step_by_step():
    words = bits(300, 100, "race").flatten()
    assert exponential(words).tolist() == [minus_log_in_plain_floats(word) for word in words.tolist()]


def test_exponential_is_minus_log_also_at_the_ends():
    n = torch.tensor([1, 3, 2**52 - 1, 2**52 + 1, 2**53 - 3, 2**53 - 1])
    numbers = torch.cat([n, (bits(100, 100, "log").flatten() >> 11) & (2**53 - 1) | 1])
    drawn = exponential(numbers << 11)
    exact = torch.tensor([-math.log1p((x - 2**53) / 2**53) for x in numbers.tolist()], dtype=torch.float64)
    assert drawn.min() > 0
    assert ((drawn - exact).abs() <= 4 * 2.0**-52 * exact).all()


def test_exponential_follows_its_law():
    assert stats.kstest(exponential(bits(1000, 100, "law")).flatten().numpy(), "expon").pvalue > LEAST_P
