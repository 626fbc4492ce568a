"""One recall run: a model, its optimizer and its place in the data, as plain tensors on one device.

`RecallRun.train()` is a generator that enqueues a little work and yields. One loop can therefore drive many runs side
by side, each on a stream of its own, and no run ever makes the host wait inside an epoch. On a GPU every kind of step
is recorded once in a CUDA graph and replayed; on a CPU the same functions are simply called.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from basedbench.kernels import linear_cross_entropy
from basedbench.models.recall import RecallModel
from basedbench.training.cases import RecallCase
from basedbench.training.data import RecallData, SegmentData
from basedbench.training.graphs import Call, Recorder
from basedbench.training.optimizer import AdamW

# Evaluation has no batch effects, so its batch is only a question of memory.
EVALUATION_TOKENS = 65_536


@dataclass
class Progress:
    """What a run has shown so far. Accuracies are fractions of the queries answered rightly."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    slices: dict[str, list[float]] = field(default_factory=dict)
    validation: list[float] = field(default_factory=list)
    steps: int = 0
    status: str = "ok"
    stop_reason: str = ""


class RecallRun:
    """A case in training on `device` ("cpu", "cuda:0", ...)."""

    def __init__(self, case: RecallCase, data: RecallData, device: str) -> None:
        self.case, self.data = case, data
        self.device = torch.device(device)
        self.progress = Progress()
        self.model = build_model(case).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(case.seed)
        self.model.set_generator(self.generator)
        self.optimizer = AdamW(list(self.model.parameters()), case.train.weight_decay)
        self.recorder = Recorder(self.device, self.generator)
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.cursors = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in data.train]
        self.orders = [torch.arange(len(part.tokens_NL), device=self.device) for part in data.train]
        self.judged = [(split, part) for split, parts in data.splits.items() for part in parts]
        self.test_cursors = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in self.judged]
        self.hits = torch.zeros(len(self.judged), dtype=torch.int64, device=self.device)

    def train(self) -> Iterator[bool]:
        """Run to the end. Yields True after enqueuing work, False when it can only wait for the device."""
        self._record()
        yield True
        for epoch in range(self.case.train.epochs):
            yield from self._epoch(epoch)
            if self.progress.stop_reason:
                return
        self.progress.stop_reason = "epochs"

    def _epoch(self, epoch: int) -> Iterator[bool]:
        self._begin_epoch(epoch)
        schedule = self.schedule(epoch)
        for part, size in schedule:
            self.recorder.play(self.train_batch, part, size)
            yield True
        for index, sizes in enumerate(self.evaluation_sizes()):
            for size in sizes:
                self.recorder.play(self.test_batch, index, size)
                yield True
        report = self.recorder.fetch(torch.cat([self.loss.view(1), self.hits.double()]))
        while not report.ready():
            yield False
        self._end_epoch(report.values(), len(schedule))

    def _begin_epoch(self, epoch: int) -> None:
        train = self.case.train
        self.model.train()
        self.optimizer.learning_rate.fill_(cosine(train.epochs, epoch) * self.case.learning_rate)
        self.loss.zero_()
        self.hits.zero_()
        for cursor in self.test_cursors:
            cursor.zero_()
        for part, cursor, order in zip(self.data.train, self.cursors, self.orders, strict=True):
            cursor.fill_(part.count * epoch if train.fresh else 0)
            if train.shuffle and not train.fresh:
                generator = torch.Generator().manual_seed(self.case.seed * 1_000_003 + epoch)
                order.copy_(torch.randperm(len(order), generator=generator), non_blocking=True)

    def schedule(self, epoch: int) -> list[tuple[int, int]]:
        """(segment, batch size) of each step: segment after segment as the recipe has it, or mixed with `shuffle`."""
        batch = self.case.train.batch_size
        steps = [(index, size) for index, part in enumerate(self.data.train) for size in split_sizes(part.count, batch)]
        if self.case.train.shuffle:
            random.Random(f"{self.case.seed}-{epoch}").shuffle(steps)
        return steps

    def evaluation_sizes(self) -> list[list[int]]:
        """The batch sizes in which each evaluated slice is read."""
        return [
            split_sizes(part.count, max(1, min(part.count, EVALUATION_TOKENS // part.tokens_NL.shape[1])))
            for _, part in self.judged
        ]

    def train_batch(self, index: int, size: int) -> None:
        """One optimizer step on the next `size` examples of a segment."""
        part, cursor = self.data.train[index], self.cursors[index]
        rows = self.orders[index].index_select(0, cursor + self.recorder.arange(size))
        loss_N, _ = self._losses(part, rows)
        loss = loss_N.mean()
        gradients = torch.autograd.grad(loss, self.optimizer.parameters)
        self.optimizer.step(gradients)
        self.loss.add_(loss.detach())
        cursor.add_(size)

    @torch.no_grad()
    def test_batch(self, index: int, size: int) -> None:
        """Count the right answers among the next `size` examples of a slice."""
        self.model.eval()
        _, part = self.judged[index]
        cursor = self.test_cursors[index]
        _, hits = self._losses(part, cursor + self.recorder.arange(size))
        self.hits[index].add_(hits.sum())
        cursor.add_(size)
        self.model.train()

    def _losses(self, part: SegmentData, rows: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BL = part.tokens_NL.index_select(0, rows)
        positions_BK = part.positions_NK.index_select(0, rows)
        targets_BK = part.targets_NK.index_select(0, rows)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.case.train.precision == "bf16", cache_enabled=False
        ):
            asked_BKD = self.model.hidden(tokens_BL, positions_BK)
            return linear_cross_entropy(asked_BKD.flatten(0, 1), self.model.head_weight, targets_BK.flatten())

    def _end_epoch(self, values: list[float], steps: int) -> None:
        progress = self.progress
        progress.steps += steps
        progress.losses.append(values[0] / steps)
        found: dict[str, list[float]] = {}
        for (split, part), hits in zip(self.judged, values[1:], strict=True):
            accuracy = hits / part.targets_NK.numel()
            found.setdefault(split, []).append(accuracy)
            if split == "test":
                progress.slices.setdefault(part.name, []).append(accuracy)
        progress.accuracies.append(mean(found["test"]))
        if "validation" in found:
            progress.validation.append(mean(found["validation"]))
        if not math.isfinite(progress.losses[-1]):
            progress.status, progress.stop_reason = "diverged", "loss is not finite"
        elif progress.accuracies[-1] > self.case.train.stop_accuracy:
            progress.stop_reason = f"accuracy above {self.case.train.stop_accuracy:g}"

    def _record(self) -> None:
        """Record every kind of step that the run will need; on a CPU there is nothing to record."""
        kinds: list[Call] = [(self.train_batch, part, size) for part, size in dict.fromkeys(self.schedule(0))]
        for index, sizes in enumerate(self.evaluation_sizes()):
            kinds += [(self.test_batch, index, size) for size in dict.fromkeys(sizes)]
        changed = [*self.optimizer.tensors(), self.loss, self.hits, *self.cursors, *self.test_cursors]
        self.model.train()
        self.recorder.record(kinds, changed)


def build_model(case: RecallCase) -> RecallModel:
    """The model of a case with the weights of its seed; made on the CPU, so that they are the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        train = case.train
        return RecallModel(
            case.task.vocab_size, case.d_model, case.layers, init=train.init, embed_dropout=train.embed_dropout
        )


def cosine(epochs: int, epoch: int) -> float:
    """The share of the learning rate in an epoch: a cosine to zero, stepped once per epoch."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def split_sizes(count: int, batch: int) -> list[int]:
    """`count` examples in batches; the smaller last one is kept."""
    return [batch] * (count // batch) + ([count % batch] if count % batch else [])


def mean(values: list[float]) -> float:
    """The unweighted mean."""
    return sum(values) / len(values)
