"""MQAR examples: constraints, layout, reproducibility in slices, hashes. (The laws: test_mqar_law.py.)"""

import numpy as np
import pytest
import torch

from basedbench.errors import UserError
from basedbench.tasks import MQAR, batches_hash, combined_hash, window_accuracy
from basedbench.tasks.random import random_bits

TASKS = [
    MQAR(64, 16, 1),
    MQAR(128, 64, 4),
    MQAR(97, 64, 16),
    MQAR(8192, 256, 64),
    MQAR(128, 64, 8, power_a=1.0),
    MQAR(128, 64, 8, filler="zero"),
    MQAR(128, 96, 16, passes=2),
    MQAR(34, 32, 2, passes=7),
]
TRAINING_SET = [(64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)]


def ids(task: MQAR) -> str:
    return f"{task.name}-V{task.vocab_size}-a{task.power_a:g}-{task.filler}-x{task.passes}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"length": 255, "pairs": 4}, "length is 255 and must be even"),
        ({"vocab_size": 256}, "vocab_size is 256 and must be above length = 256"),
        ({"pairs": 65}, "length is 256 and must be at least 4 x pairs = 260 with passes = 1"),
        ({"passes": 2}, "length is 256 and must be at least 6 x pairs = 384 with passes = 2"),
        ({"vocab_size": 129, "length": 128, "pairs": 64}, "pairs is 64 and must be at most vocab_size // 2 - 1 = 63"),
        ({"power_a": 0.0}, "power_a is 0.0 and must be above 0 and at most 10"),
        ({"power_a": float("nan")}, "power_a is nan and must be above 0 and at most 10"),
        ({"power_a": 11.0}, "power_a is 11.0 and must be above 0 and at most 10"),
        ({"pairs": 0}, "pairs is 0 and must be at least 1"),
        ({"passes": 0}, "passes is 0 and must be at least 1"),
        ({"passes": True}, "passes is True and must be a whole number"),
        ({"vocab_size": 512.0}, "vocab_size is 512.0 and must be a whole number"),
        ({"pairs": torch.tensor(4.5)}, "and must be a whole number"),
        ({"filler": 3}, "filler is 3 and must be a word"),
        ({"power_a": "1"}, "power_a is '1' and must be a number"),
        ({"filler": "zeros"}, "filler is 'zeros'; did you mean 'zero'?"),
    ],
)
def test_a_violated_constraint_is_named_with_value_and_bound(fields: dict, expected: str):
    with pytest.raises(UserError) as caught:
        MQAR(**fields)
    assert expected in str(caught.value)


def test_all_violated_constraints_are_named_at_once():
    with pytest.raises(UserError) as caught:
        MQAR(vocab_size=60, length=63, pairs=40, power_a=-1, filler="randon", passes=0)
    message = str(caught.value)
    assert message.startswith("MQAR 63x40 cannot be made: ")
    assert message.count(";") == 7  # seven constraints; the filler's own sentence has one more
    assert "\n" not in message


def test_the_bounds_themselves_are_allowed():
    MQAR(vocab_size=66, length=64, pairs=16)
    MQAR(vocab_size=10, length=8, pairs=2)
    MQAR(vocab_size=97, length=96, pairs=16, passes=2, power_a=10)
    assert MQAR(8192, 64, 4).name == "64x4"


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_layout(task: MQAR):
    tokens, positions, targets = task.examples(0, "train", 0, 500)
    B, K, V, context = 500, task.pairs, task.vocab_size, 2 * task.pairs * task.passes
    assert tokens.shape == (B, task.length)
    assert positions.shape == targets.shape == (B, K)
    assert {x.dtype for x in (tokens, positions, targets)} == {torch.int64}

    keys, values = tokens[:, 0 : 2 * K : 2], tokens[:, 1 : 2 * K : 2]
    assert torch.equal(tokens[:, :context], tokens[:, : 2 * K].repeat(1, task.passes))
    assert keys.min() >= 1
    assert keys.max() < V // 2 <= values.min()
    assert values.max() < V
    for drawn in (keys, values):
        assert (drawn.sort(1).values.diff(dim=1) > 0).all()

    assert (positions.diff(dim=1) > 0).all()
    assert ((positions >= context) & (positions < task.length) & (positions % 2 == 0)).all()
    matches = tokens.gather(1, positions)[:, :, None] == keys[:, None, :]
    assert (matches.sum(2) == 1).all()
    assert (matches.sum(1) == 1).all()
    assert torch.equal(targets, values.gather(1, matches.long().argmax(2)))


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_filler_fills_all_but_the_questions(task: MQAR):
    tokens, positions, _ = task.examples(0, "train", 0, 2000)
    asked = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, positions, True)
    filler = tokens[:, task.query_start :][~asked[:, task.query_start :]]
    assert filler.numel() == 2000 * (task.length - task.query_start - task.pairs)
    if task.filler == "zero":
        assert not filler.any()
    else:
        assert filler.unique().numel() == task.vocab_size  # all of [0, V)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_distances_are_those_in_the_tokens(task: MQAR):
    tokens, positions, targets = task.examples(3, "test", 5, 50)
    distances = task.distances(3, "test", 5, 50)
    for b in range(50):
        context = tokens[b, : task.query_start].tolist()
        for position, target, distance in zip(*(x[b].tolist() for x in (positions, targets, distances)), strict=True):
            latest = max(i for i in range(1, len(context), 2) if context[i] == target)
            assert position - latest == distance


def test_window_accuracy_counts_what_lies_within():
    task = MQAR(64, 16, 2)
    distances = task.distances(0, "test", 0, 100)
    for window in (0, 3, 7, 16):
        assert window_accuracy(task, window, 0, "test", 100) == pytest.approx((distances <= window).sum().item() / 200)
    assert window_accuracy(task, 16, 0, "test", 100) == 1.0


def test_any_slice_can_be_made_alone():
    task = MQAR(256, 64, 8)
    whole = task.examples(1, "train", 0, 6000)  # more than is made at once
    for start, count in ((0, 1), (4090, 20), (5999, 1), (17, 5000), (100, 0)):
        part = task.examples(1, "train", start, count)
        assert all(torch.equal(x[start : start + count], y) for x, y in zip(whole, part, strict=True))


def test_pieces_follow_one_another():
    task = MQAR(256, 64, 8)
    pieces = list(task.batches(1, "train", 30, 6000))
    assert len(pieces) > 1
    joined = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    assert all(torch.equal(x, y) for x, y in zip(joined, task.examples(1, "train", 30, 6000), strict=True))


def filler_of(task: MQAR, seed: int = 0, split: str = "train", start: int = 0) -> torch.Tensor:
    return task.examples(seed, split, start, 1000)[0][:, task.query_start + 1 :: 2]


@pytest.mark.parametrize("column", ["filler", "context"])
@pytest.mark.parametrize(
    "other",
    [
        (MQAR(128, 64, 4), 1, "train", 0),
        (MQAR(128, 64, 4), -1, "train", 0),
        (MQAR(128, 64, 4), 0, "validation", 0),
        (MQAR(128, 64, 4), 0, "train", 1),
        (MQAR(128, 64, 4, power_a=1.0), 0, "train", 0),
        (MQAR(128, 96, 4), 0, "train", 0),
        (MQAR(128, 64, 8), 0, "train", 0),
        (MQAR(128, 64, 4, passes=2), 0, "train", 0),
        (MQAR(128, 64, 4, filler="zero"), 0, "train", 0),
        (MQAR(129, 64, 4), 0, "train", 0),
    ],
    ids=lambda value: "-".join(map(str, value[1:])) + ids(value[0]) if isinstance(value, tuple) else None,
)
def test_examples_of_other_seeds_splits_segments_and_indices_are_unrelated(other: tuple, column: str):
    task, seed, split, start = other
    base = MQAR(128, 64, 4)
    if column == "filler" and task.filler == "random":
        a, b, chance = filler_of(base), filler_of(task, seed, split, start), 1 / 128
    else:
        a, b = base.examples(0, "train", 0, 1000)[0][:, :8], task.examples(seed, split, start, 1000)[0][:, :8]
        chance = 1 / 64
    width = min(a.shape[1], b.shape[1])
    n = 1000 * width
    agreements = (a[:, :width] == b[:, :width]).sum().item()
    assert abs(agreements - n * chance) < 5 * (n * chance) ** 0.5


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_no_draw_serves_twice(task: MQAR, monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    def watched(states: torch.Tensor, first: int, count: int) -> torch.Tensor:
        drawn.extend(range(first, first + count))
        return random_bits(states, first, count)

    monkeypatch.setattr("basedbench.tasks.mqar.random_bits", watched)
    task.examples(0, "train", 0, 1)
    assert len(drawn) == len(set(drawn)) >= 2 * task.pairs + task.space


def test_power_a_may_be_spelled_as_an_integer():
    assert MQAR(128, 64, 8, power_a=1).data_hash(0, "train", 10) == MQAR(128, 64, 8, power_a=1.0).data_hash(
        0, "train", 10
    )


def test_the_data_never_change_unnoticed():
    """If this fails, published rows are about other data: change the task's format number, and say so in the log."""
    assert MQAR(8192, 64, 4).data_hash(0, "train", 1000) == "ca9a25e87c6d3260"
    assert MQAR(8192, 1024, 256).data_hash(0, "test", 100) == "e0247e3110d8be72"
    assert (
        MQAR(96, 64, 8, power_a=1.0, filler="zero", passes=2).data_hash(7, "validation", 50, start=3)
        == "fa4b85c4e82e6c86"
    )


def test_the_hash_depends_on_the_data_alone():
    task = MQAR(256, 64, 8)
    tokens, positions, targets = task.examples(0, "train", 0, 6000)
    digest = task.data_hash(0, "train", 6000)
    assert digest == batches_hash([(tokens, positions, targets)])
    assert digest == batches_hash([(tokens[:9], positions[:9], targets[:9]), (tokens[9:], positions[9:], targets[9:])])
    assert digest == batches_hash([(tokens.int(), positions.int(), targets.int())])
    assert len(digest) == 16
    tokens[5999, 63] += 1
    assert digest != batches_hash([(tokens, positions, targets)])
    assert task.data_hash(0, "train", 5, start=1) != task.data_hash(0, "train", 5)


def test_combined_hash_depends_on_every_part_and_the_order():
    assert combined_hash(["a", "b"]) == combined_hash(iter(["a", "b"]))
    assert len({combined_hash(parts) for parts in (["a"], ["a", "b"], ["b", "a"], ["ab"], [])}) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("task", "count"),
    [(MQAR(8192, length, pairs), count) for length, pairs, count in TRAINING_SET] + [(t, 20_000) for t in TASKS],
    ids=str,
)
def test_a_gpu_makes_the_same_examples(task: MQAR, count: int):
    on_gpu = task.examples(0, "train", 0, count, device="cuda")
    assert all(x.is_cuda for x in on_gpu)
    assert all(torch.equal(x, y.cpu()) for x, y in zip(task.examples(0, "train", 0, count), on_gpu, strict=True))
    assert torch.equal(task.distances(0, "train", 0, count), task.distances(0, "train", 0, count, "cuda").cpu())
    assert task.data_hash(0, "train", count, device="cuda") == batches_hash([on_gpu])


def test_whole_numbers_of_other_libraries_are_whole_numbers() -> None:
    task = MQAR(np.int64(97), np.int32(64), torch.tensor(16))  # type: ignore[arg-type]
    assert task == MQAR(97, 64, 16)
    assert task.data_hash(np.int64(3), "train", 2) == MQAR(97, 64, 16).data_hash(3, "train", 2)
    with pytest.raises(TypeError, match="integer"):
        task.examples(0.9, "train", 0, 1)  # type: ignore[arg-type]


def test_a_rounded_power_is_another_task() -> None:
    rounded = MQAR(97, 64, 16, power_a=np.float32(0.1))  # type: ignore[arg-type]
    assert type(rounded.power_a) is float
    assert rounded != MQAR(97, 64, 16, power_a=0.1)


def test_of_no_examples_there_are_no_distances() -> None:
    assert MQAR(97, 64, 16).distances(0, "train", 0, 0).shape == (0, 16)
