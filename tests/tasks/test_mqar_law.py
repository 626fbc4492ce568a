"""The distribution of MQAR examples, against closed forms, an independent sampler and the published figure."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from basedbench.tasks import MQAR, window_accuracy

LEAST_P = 1e-4  # seeds are fixed: a test that passes once passes always
TEST_SLICES = [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]


def slots_by_key(task: MQAR, count: int) -> np.ndarray:
    """The slot in which each key is asked, (B,K) in the order of the context, read off the examples themselves."""
    tokens, positions, targets = task.examples(0, "train", 0, count)
    context = 2 * task.pairs * task.passes
    values = tokens[:, 1 : 2 * task.pairs : 2]
    order = (values[:, :, None] == targets[:, None, :]).long().argmax(2)
    return (positions.gather(1, order) - context).div(2, rounding_mode="floor").numpy()


def weights(task: MQAR) -> np.ndarray:
    slots = np.arange(1, (task.length - 2 * task.pairs * task.passes) // 2 + 1)
    return slots ** (task.power_a - 1.0)


def sequential_slots(task: MQAR, count: int) -> np.ndarray:
    """Draw, strike out, draw again, as the definition has it: (B,K)."""
    rng = np.random.default_rng(1)
    left = np.tile(weights(task), (count, 1))
    drawn = np.empty((count, task.pairs), dtype=np.int64)
    for j in range(task.pairs):
        reach = left.cumsum(1)
        drawn[:, j] = (reach <= rng.random((count, 1)) * reach[:, -1:]).sum(1)
        left[np.arange(count), drawn[:, j]] = 0.0
    return drawn


def merged(counts: np.ndarray, expected: np.ndarray, least: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """Counts and expectations with rare cells added up until each expects at least `least`."""
    order = np.argsort(expected)
    group = np.cumsum(expected[order]) // least
    _, group = np.unique(group, return_inverse=True)
    return np.bincount(group, counts[order]), np.bincount(group, expected[order])


def assert_follows(cells: np.ndarray, probability: np.ndarray) -> None:
    counts = np.bincount(cells, minlength=len(probability)).astype(float)
    assert counts[probability == 0].sum() == 0
    possible = probability > 0
    observed, expected = merged(counts[possible], probability[possible] * len(cells))
    assert stats.chisquare(observed, expected).pvalue > LEAST_P


@pytest.mark.parametrize("column", [0, 3, 7])
@pytest.mark.parametrize("what", ["keys", "values"])
def test_keys_and_values_are_uniform(what: str, column: int):
    tokens, _, _ = MQAR(131, 64, 8).examples(0, "train", 0, 40_000)
    drawn = tokens[:, 2 * column + (what == "values")].numpy()
    low, high = (1, 65) if what == "keys" else (65, 131)
    counts = np.bincount(drawn, minlength=131)
    assert counts[low:high].sum() == 40_000
    assert stats.chisquare(counts[low:high]).pvalue > LEAST_P


def test_tokens_of_an_example_are_uncorrelated():
    """Each token with each other; two keys (or two values) have the -1/(n - 1) of draws without replacement."""
    task = MQAR(512, 64, 4)
    tokens, _, _ = task.examples(0, "train", 0, 40_000)
    free = np.r_[: task.query_start, task.query_start + 1 : 64 : 2]
    correlation = np.corrcoef(tokens[:, free].numpy().T)
    np.fill_diagonal(correlation, 0.0)
    expected = np.zeros_like(correlation)
    for first, n in ((0, 255), (1, 256)):
        expected[first:8:2, first:8:2] = -1 / (n - 1)
    np.fill_diagonal(expected, 0.0)
    assert np.abs(correlation - expected).max() < 5 / np.sqrt(40_000)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (14, 15), (0, 17), (1, 17), (17, 19)])
def test_tokens_of_different_draws_are_independent(a: int, b: int):
    tokens, _, _ = MQAR(131, 64, 8, power_a=1.0).examples(0, "train", 0, 40_000)
    table = np.histogram2d(tokens[:, a].numpy(), tokens[:, b].numpy(), bins=12)[0]
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_filler_is_uniform_everywhere_and_may_be_anything():
    task = MQAR(70, 64, 4)
    tokens, positions, _ = task.examples(0, "train", 0, 20_000)
    asked = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, positions, True)
    region = tokens[:, task.query_start :]
    free = ~asked[:, task.query_start :]
    for places in (free, free & (torch.arange(56) % 2 == 0), free & (torch.arange(56) == 55)):
        assert stats.chisquare(np.bincount(region[places].numpy(), minlength=70)).pvalue > LEAST_P
    keys_again = (region[free] == tokens[:, :1].expand_as(region)[free]).double().mean().item()
    assert abs(keys_again - 1 / 70) < 5 * (1 / 70 / free.sum().item()) ** 0.5


@pytest.mark.parametrize("power_a", [0.01, 0.5, 1.0, 2.0])
def test_slots_follow_the_successive_weighted_draw_exactly(power_a: float):
    """Every ordered draw of 3 of 9 slots against its probability."""
    task = MQAR(32, 24, 3, power_a=power_a)
    ordered = np.array(list(permutations(range(task.space), 3)))
    law = np.zeros(task.space**3)
    law[ordered @ [81, 9, 1]] = successive_probability(weights(task), ordered)
    assert_follows(slots_by_key(task, 100_000) @ [81, 9, 1], law)


def successive_probability(weight: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """P(first slot, second slot, ...) for each row of `ordered`."""
    picked = weight[ordered] / weight.sum()
    left = 1.0 - np.cumsum(picked, 1) + picked
    return (picked / left).prod(1)


def test_slots_of_the_shortest_published_segment():
    """(64,4): each key's slot, the pair of first and last, and the mean slots, against all 491,400 ordered draws."""
    task = MQAR(8192, 64, 4)
    ordered = np.array(list(permutations(range(28), 4)))
    probability = successive_probability(weights(task), ordered)
    slots = slots_by_key(task, 100_000)
    for j in range(4):
        assert_follows(slots[:, j], np.bincount(ordered[:, j], probability))
    assert_follows(slots[:, [0, 3]] @ [28, 1], np.bincount(ordered[:, [0, 3]] @ [28, 1], probability, 28 * 28))
    means = probability @ ordered
    assert means[[0, 3]] == pytest.approx([6.20, 8.08], abs=0.01)
    assert slots.mean(0) == pytest.approx(means, abs=0.1)


@pytest.mark.parametrize(
    "task",
    [MQAR(256, 128, 16), MQAR(256, 64, 16), MQAR(512, 256, 64), MQAR(256, 128, 16, 1.0), MQAR(256, 96, 16, passes=2)],
    ids=lambda task: f"{task.name}-a{task.power_a:g}-x{task.passes}",
)
def test_slots_agree_with_a_sampler_that_draws_one_by_one(task: MQAR):
    ours, theirs = slots_by_key(task, 20_000), sequential_slots(task, 20_000)
    for j in {0, 1, task.pairs // 2, task.pairs - 1}:
        counts = [np.bincount(slots[:, j], minlength=task.space) for slots in (ours, theirs)]
        table = np.array([merged(row, np.add(*counts))[0] for row in counts])
        assert stats.chi2_contingency(table).pvalue > LEAST_P
    spread = [slots[:, -1] - slots[:, 0] for slots in (ours, theirs)]
    assert stats.ks_2samp(*spread).pvalue > LEAST_P


def test_mean_slots_of_the_longest_published_segment():
    means = slots_by_key(MQAR(8192, 1024, 256), 2000).mean(0)
    assert means[[0, -1]] == pytest.approx([40, 217], abs=5)


def test_windows_score_what_the_published_figure_says():
    """Generator, metric and window together: what a perfect sliding window scores over the seven test slices."""
    table = {8: 0.0592, 16: 0.1447, 32: 0.3125, 64: 0.5138, 128: 0.6547, 256: 0.7965, 512: 0.9359, 1024: 1.0}
    distances = [MQAR(8192, length, pairs).distances(0, "test", 0, 20_000) for length, pairs in TEST_SLICES]
    for window, expected in table.items():
        score = np.mean([(x <= window).double().mean().item() for x in distances])
        assert score == pytest.approx(expected, abs=0.002), f"window {window}"
    assert window_accuracy(MQAR(8192, 64, 4), 8, 0, "test", 20_000) == (distances[0] <= 8).double().mean().item()


def test_windows_score_the_same_on_whole_examples():
    """The acceptance table again on a smaller sample, from nothing but tokens, positions and targets."""
    within = {8: [], 64: [], 512: []}
    for length, pairs in TEST_SLICES:
        tokens, positions, targets = MQAR(8192, length, pairs).examples(1, "test", 0, 2000)
        values = tokens[:, 1 : 2 * pairs : 2]
        place = 2 * (values[:, None, :] == targets[:, :, None]).int().argmax(2) + 1
        for window, scores in within.items():
            scores.append((positions - place <= window).double().mean().item())
    for window, expected in ((8, 0.0592), (64, 0.5138), (512, 0.9359)):
        assert np.mean(within[window]) == pytest.approx(expected, abs=0.005)
