"""The tokens that a run trains and is tested on: made on the device once, shared by every run with the same seed."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from basedbench.config.recall import TrainSection
from basedbench.kernels.batch import Tables
from basedbench.kernels.embedding import Places, sorted_places
from basedbench.models.recall import packs
from basedbench.tasks import MQAR, batches_hash, combined_hash
from basedbench.training.cases import RecallCase
from basedbench.training.packed import PackedBatches, can_be_packed, packed_batches, token_blocks


@dataclass(frozen=True)
class SegmentData:
    """The examples of one shape. `count` is what one epoch uses; fresh data holds that many for each epoch.

    Where batches are always the same, `packed` is what is left out of them, if anything, and `places` where each token
    stands in each of them.
    """

    name: str
    tokens_NL: Tensor
    positions_NK: Tensor
    targets_NK: Tensor
    count: int
    places: Places | None = None
    packed: PackedBatches | None = None

    @property
    def tables(self) -> Tables:
        """What batches are taken from."""
        return Tables(self.tokens_NL, self.positions_NK, self.targets_NK)


@dataclass(frozen=True)
class RecallData:
    """Everything a run reads. `splits` holds the test slices, and the validation slices if they are asked for."""

    train: tuple[SegmentData, ...]
    splits: dict[str, tuple[SegmentData, ...]]
    data_hash: str


@dataclass(frozen=True)
class _Portion:
    task: MQAR
    split: str
    total: int
    count: int
    start: int = 0  # its first example: behind those of an earlier segment of the same task
    batch: int = 0  # the size of batches that are always the same
    packed: bool = False


def recall_data(case: RecallCase, device: str, packed: bool | None = None) -> RecallData:
    """The data of a case, from the cache of this process if another run made them.

    `packed`: whether batches are, see `PackedBatches`; by default on a GPU, for a model that is faster so. Those that
    are not always the same never are.
    """
    train, test = case.train, case.test
    if packed is None:
        packed = device != "cpu" and packs(case.d_model, case.layers, train.precision)
    epochs = train.epochs if train.fresh else 1
    learn: list[_Portion] = []
    for s in train.segments:
        task, count = case.segment_task(s.length, s.pairs), s.examples or 0
        start = sum(part.total for part in learn if part.task == task)
        batch = _lasting_batch(train, count)
        learn.append(_Portion(task, "train", count * epochs, count, start, batch, packed))
    judge = tuple(
        _Portion(case.segment_task(s.length, s.pairs), split, s.examples or test.examples, s.examples or test.examples)
        for split in evaluation_splits(case)
        for s in test.segments
    )
    return _generate(tuple(learn), judge, case.seed, device)


def _lasting_batch(train: TrainSection, count: int) -> int:
    """The size of a segment's batches if they are always the same, else 0.

    Shuffled steps on fresh examples take these in order, but the smaller batch may come before another.
    """
    moved = train.shuffle and (not train.fresh or len(set(split_sizes(count, train.batch_size))) > 1)
    return 0 if moved else train.batch_size


def evaluation_splits(case: RecallCase) -> tuple[str, ...]:
    """The splits evaluated after each epoch."""
    return ("test",) if case.test.select == "test" else ("test", "validation")


@lru_cache(maxsize=4)
def _generate(learn: tuple[_Portion, ...], judge: tuple[_Portion, ...], seed: int, device: str) -> RecallData:
    portions = (*learn, *judge)
    spans = tuple((part.task, part.split, part.start, part.total) for part in portions)
    tables, data_hash = _tables(spans, seed, device)
    examples = [_examples(portion, own) for portion, own in zip(portions, tables, strict=True)]
    splits: dict[str, tuple[SegmentData, ...]] = {}
    for portion, part in zip(judge, examples[len(learn) :], strict=True):
        splits[portion.split] = (*splits.get(portion.split, ()), part)
    return RecallData(tuple(examples[: len(learn)]), splits, data_hash)


@lru_cache(maxsize=4)  # of as many seeds as above, and no more: packed or not, they are the same
def _tables(portions: tuple[tuple[MQAR, str, int, int], ...], seed: int, device: str) -> tuple[list[Tables], str]:
    """The examples of each portion, and the hash of all."""
    with torch.no_grad():
        tables = [
            Tables(*task.examples(seed, split, start, count, device=device)) for task, split, start, count in portions
        ]
    return tables, combined_hash([batches_hash([own]) for own in tables])


def _examples(portion: _Portion, tables: Tables) -> SegmentData:
    task, (tokens, positions, targets) = portion.task, tables
    with torch.no_grad():
        places = packed = None
        if portion.batch:
            sizes = split_sizes(portion.count, portion.batch) * (portion.total // portion.count)
            if portion.packed and can_be_packed(task.length):
                packed = packed_batches(positions, task.length, sizes)
            if tokens.is_cuda:  # on a CPU nobody reads them
                places = sorted_places(token_blocks(tokens, sizes, packed), task.vocab_size)
    return SegmentData(f"{task.length}x{task.pairs}", tokens, positions, targets, portion.count, places, packed)


def split_sizes(count: int, batch: int) -> list[int]:
    """`count` examples in batches; the smaller last one is kept."""
    return [batch] * (count // batch) + ([count % batch] if count % batch else [])
