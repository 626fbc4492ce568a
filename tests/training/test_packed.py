"""Batches without the tokens behind each example's last question: the same losses, gradients and rows."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from basedbench.kernels.embedding import sorted_places
from basedbench.kernels.packing import packing_of
from basedbench.models.recall import packs
from basedbench.training.cases import RecallCase
from basedbench.training.data import recall_data, split_sizes
from basedbench.training.packed import PackedBatches, can_be_packed, packed_batches, token_blocks
from basedbench.training.run import RecallRun
from tests.training.conftest import MakeCase

WINDOW = [{"mixer": "sliding_window", "grid": {"d_model": 16, "window": 8}}]


def test_every_example_once_in_its_own_batch_and_long_enough() -> None:
    sizes = [8, 8, 8, 5]
    positions = torch.rand(29, 64).argsort(1)[:, :3]
    packed = packed_batches(positions, 64, sizes)
    order = packed.order_N.split(sizes)
    for number, (rows, size) in enumerate(zip(order, sizes, strict=True)):
        assert sorted(rows.tolist()) == list(range(8 * number, 8 * number + size))
        lengths = packed.packings[size].starts_B.diff()
        assert (positions[rows].amax(1) < lengths).all()
        assert (lengths % 8 == 0).all()
        assert (lengths.diff() <= 0).all()
        assert packed.packings[size].tokens % 16 == 0
    # No longer than any batch asks for, but for whole tiles and the eight tokens that make the sum even.
    most = torch.stack([(positions[rows].amax(1) + 1) for rows in order[:3]]).amax(0)
    assert packed.packings[8].tokens <= ((most + 7) // 8 * 8).sum() + 8


def test_examples_are_never_longer_than_they_are() -> None:
    packed = packed_batches(torch.full((6, 1), 23), 24, [3, 3])
    assert packed.packings[3].starts_B.tolist() == [0, 24, 48, 72]


def test_kernels_are_chosen_by_the_length_of_examples_not_by_what_is_asked_of_them() -> None:
    packing = packed_batches(torch.tensor([[3], [9], [17]]), 64, [3]).packings[3]
    assert packing.starts_B.tolist() == [0, 24, 40, 48]
    assert packing.longest == 64
    with pytest.raises(ValueError, match="longer than 16"):
        packing_of([24, 8], "cpu", 16)


def test_odd_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        packed_batches(torch.zeros(4, 1, dtype=torch.int64), 20, [4])


@pytest.mark.parametrize("packed", [True, False])
def test_places_are_those_of_the_tokens_that_are_read(packed: bool) -> None:
    sizes, tokens = [4, 4, 3], torch.randint(10, (11, 32))
    batches = packed_batches(torch.rand(11, 32).argsort(1)[:, :2], 32, sizes) if packed else None
    places = sorted_places(token_blocks(tokens, sizes, batches), 10)
    assert places is not None
    start = 0
    for number, size in enumerate(sizes):
        read = batch_of(tokens, batches, start, size)
        for word in range(10):
            first, last = places.starts[number * 10 + word : number * 10 + word + 2].tolist()
            assert places.order[first:last].tolist() == (read == word).nonzero().flatten().tolist()
        assert (places.batch_N[start : start + size] == number).all()
        start += size


def batch_of(tokens: torch.Tensor, batches: PackedBatches | None, start: int, size: int) -> torch.Tensor:
    if batches is None:
        return tokens[start : start + size].flatten()
    rows, lengths = batches.order_N[start : start + size], batches.packings[size].starts_B.diff()
    return torch.cat([tokens[row, :length] for row, length in zip(rows, lengths.tolist(), strict=True)])


@pytest.mark.parametrize("models", [None, WINDOW], ids=["based", "sliding_window"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_learns_the_same(make_case: MakeCase, models: list[dict[str, object]] | None, fresh: bool) -> None:
    case = make_case(models, fresh=fresh, embed_dropout=0.0, batch_size=12)
    assert packs(case.d_model, case.layers)
    plain, packed = (run_of(case, choice) for choice in (False, True))
    for segment in packed.data.train:
        assert segment.packed is not None
        assert set(segment.packed.packings) == set(split_sizes(segment.count, 12))
        assert segment.packed.packings[12].tokens < 12 * segment.tokens_NL.shape[1]
    assert packed.data.data_hash == plain.data.data_hash
    assert packed.progress.losses == pytest.approx(plain.progress.losses, rel=1e-4)
    for mine, other in zip(packed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("mixer", ["h3", "hyena"])
def test_a_model_is_packed_where_that_is_faster(make_case: MakeCase, mixer: str) -> None:
    case = make_case([{"mixer": mixer, "grid": {"d_model": 16}}])
    for precision in ("fp32", "tf32", "bf16"):
        assert packs(case.d_model, case.layers, precision) == (precision == "bf16")
    slow = {"h3": {"head_dim": 4}, "hyena": {"short_filter": 5}}[mixer]
    case = make_case([{"mixer": mixer, "grid": {"d_model": 16} | slow}])
    assert not packs(case.d_model, case.layers, "bf16")


def run_of(case: RecallCase, packed: bool) -> RecallRun:
    run = RecallRun(case, recall_data(case, "cpu", packed=packed), "cpu")
    for _ in run.train():
        pass
    return run


def test_examples_are_shared_packed_or_not_and_those_of_few_seeds_are_kept(make_case: MakeCase) -> None:
    case = make_case(seeds=[100])
    plain, packed = (recall_data(case, "cpu", packed=choice) for choice in (False, True))
    assert plain.train[0].tokens_NL is packed.train[0].tokens_NL
    kept = [weakref.ref(plain.train[0].tokens_NL), weakref.ref(plain.splits["test"][0].tokens_NL)]
    del plain, packed
    for seed in range(101, 105):
        recall_data(replace(case, seed=seed), "cpu", packed=True)
    gc.collect()
    assert [table() for table in kept] == [None, None]


def test_a_smaller_batch_that_shuffling_moves_forward_is_not_packed(make_case: MakeCase) -> None:
    """Else it had the lengths of another one's examples, and questions behind them."""
    case = make_case(fresh=True, shuffle=True, epochs=6, embed_dropout=0.0, batch_size=16)
    plain, packed = (run_of(case, choice) for choice in (False, True))
    assert [segment.packed is None for segment in packed.data.train] == [True, False]  # of 40 examples, and of 16
    assert any((0, 16) in plain.schedule(epoch)[plain.schedule(epoch).index((0, 8)) :] for epoch in range(6))
    assert packed.progress.losses == pytest.approx(plain.progress.losses, rel=1e-4)


def test_shuffled_batches_other_models_and_lengths_are_not_packed(make_case: MakeCase) -> None:
    shuffled = make_case(shuffle=True)
    assert all(part.packed is None for part in recall_data(shuffled, "cpu", packed=True).train)
    case = make_case([{"mixer": "sliding_window", "grid": {"d_model": 16, "window": 8, "dropout": 0.1}}])
    assert not packs(case.d_model, case.layers)
    odd = [part.model_copy(update={"length": part.length + 4}) for part in case.train.segments]
    case = replace(case, train=case.train.model_copy(update={"segments": odd}))
    assert all(part.packed is None for part in recall_data(case, "cpu", packed=True).train)
    assert [length for length in (8, 20, 64, 512, 520, 1024) if can_be_packed(length)] == [8, 64, 512]
