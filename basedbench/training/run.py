"""One recall run: a model, its optimizer and its place in the data, as plain tensors on one device.

`RecallRun.train()` is a generator that enqueues a little work and yields. One loop can therefore drive many runs side
by side, each on a stream of its own, and no run ever makes the host wait inside an epoch. On a GPU every kind of step
is recorded once in a CUDA graph and replayed; on a CPU the same functions are simply called.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import call

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from basedbench.ambient import settings_kept
from basedbench.errors import UserError
from basedbench.kernels import linear_cross_entropy
from basedbench.kernels.batch import Batch, count_step, take_batch
from basedbench.kernels.company import company
from basedbench.kernels.draws import Draws
from basedbench.kernels.embedding import Places
from basedbench.kernels.partial_sums import together
from basedbench.models.recall import RecallModel
from basedbench.training.cases import RecallCase
from basedbench.training.data import RecallData, split_sizes
from basedbench.training.graphs import Call, Recorder, Step
from basedbench.training.optimizer import AdamW

# Evaluation has no batch effects, so its batch is only a question of memory.
EVALUATION_TOKENS = 65_536


@dataclass
class Progress:
    """What a run has shown so far. Accuracies are fractions of the queries answered rightly.

    `not_finite` are the tested slices in which some answer was no finite number after the last epoch.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    slices: dict[str, list[float]] = field(default_factory=dict)
    validation: list[float] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    steps: int = 0
    status: str = "ok"
    stop_reason: str = ""


class RecallRun:
    """A case in training on `device` ("cpu", "cuda:0", ...)."""

    def __init__(self, case: RecallCase, data: RecallData, device: str) -> None:
        self.case, self.data = case, data
        self.device = torch.device(device)
        self.progress = Progress()
        self.recorded = False
        self.model = build_model(case).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(case.seed)
        on_gpu = self.model.head_weight.is_cuda
        half = torch.bfloat16 if case.train.precision == "bf16" and on_gpu else None
        self.trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.optimizer = AdamW(list(self.trained.values()), case.train.weight_decay, half)
        draws = Draws(case.seed, self.optimizer.steps) if on_gpu else None
        self.model.set_generator(self.generator, draws)
        self.weights = Weights(self.model, self.optimizer)
        self.recorder = Recorder(self.device, self.generator)
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.cursors = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in data.train]
        self.orders = [
            torch.arange(len(part.tokens_NL), device=self.device) if part.packed is None else part.packed.order_N
            for part in data.train
        ]
        self.judged = [(split, part) for split, parts in data.splits.items() for part in parts]
        self.test_cursors = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in self.judged]
        self.hits = torch.zeros(len(self.judged), dtype=torch.int64, device=self.device)
        self.test_losses = torch.zeros(len(self.judged), dtype=torch.float64, device=self.device)

    def train(self) -> Iterator[bool]:
        """Run to the end. Yields True after enqueuing work, False when it can only wait for the device."""
        for _ in self._record():
            yield True
        self.recorded = True
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
        weights = get_total_norm([weight.detach() for weight in self.model.parameters()]).double()
        parts = [self.loss.view(1), weights.view(1), self.hits.double(), self.test_losses]
        report = self.recorder.fetch(torch.cat(parts))
        while not report.ready():
            yield False
        self._end_epoch(report.values(), len(schedule))

    def _begin_epoch(self, epoch: int) -> None:
        train = self.case.train
        self.model.train()
        self.optimizer.learning_rate.fill_(cosine(train.epochs, epoch) * self.case.learning_rate)
        self.loss.zero_()
        self.hits.zero_()
        self.test_losses.zero_()
        for cursor in self.test_cursors:
            cursor.zero_()
        for part, cursor, order in zip(self.data.train, self.cursors, self.orders, strict=True):
            cursor.fill_(part.count * epoch if train.fresh else 0)
            if train.shuffle and not train.fresh:
                seed = (self.case.seed * 1_000_003 + epoch) % 2**64  # what generators take
                generator = torch.Generator().manual_seed(seed)
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
        packing = None if part.packed is None else part.packed.packings[size]
        batch = take_batch(part.tables, self.orders[index], cursor, size, packing)
        places = None if part.places is None else part.places._replace(cursor=cursor)
        loss_N, _ = self._losses(batch, places)
        share_N = self.recorder.constant(1 / len(loss_N), len(loss_N), loss_N.dtype)
        with together(loss_N), company(self.device):
            found = torch.autograd.grad(loss_N, self.weights.leaves, share_N, allow_unused=True)
        gradients = self.weights.by_parameter(found)
        for name, terms in zip(self.trained, gradients, strict=True):
            if any(term is None for term in terms):
                raise UserError(f"nothing depends on the parameter {name}: use it, or leave it out.")
        self.optimizer.step(gradients)
        count_step(loss_N.detach(), self.loss, cursor, size, self.optimizer.steps)

    @torch.no_grad()
    def test_batch(self, index: int, size: int) -> None:
        """Count the right answers among the next `size` examples of a slice."""
        self.model.eval()
        _, part = self.judged[index]
        cursor = self.test_cursors[index]
        order_N = self.recorder.arange(len(part.tokens_NL))
        loss_N, hits = self._losses(take_batch(part.tables, order_N, cursor, size))
        self.hits[index].add_(hits.sum())
        self.test_losses[index].add_(loss_N.sum())
        cursor.add_(size)
        self.model.train()

    def _losses(self, batch: Batch, places: Places | None = None) -> tuple[Tensor, Tensor]:
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.case.train.precision == "bf16", cache_enabled=False
        )
        with autocast, self.weights.in_place(), company(self.device):
            asked_BKD = self.model.hidden(batch.tokens_BL, batch.questions, places)
            return linear_cross_entropy(asked_BKD.flatten(0, 1), self.weights.head, batch.targets_BK.flatten())

    def _end_epoch(self, values: list[float], steps: int) -> None:
        progress = self.progress
        loss, weights, *rest = values
        counts, test_losses = rest[: len(self.judged)], rest[len(self.judged) :]
        progress.steps += steps
        progress.losses.append(loss / steps)
        found: dict[str, list[float]] = {}
        for (split, part), hits in zip(self.judged, counts, strict=True):
            accuracy = hits / part.targets_NK.numel()
            found.setdefault(split, []).append(accuracy)
            if split == "test":
                progress.slices.setdefault(part.name, []).append(accuracy)
        told = zip(self.judged, test_losses, strict=True)
        progress.not_finite = list(dict.fromkeys(part.name for (_, part), one in told if not math.isfinite(one)))
        progress.accuracies.append(mean(found["test"]))
        if "validation" in found:
            progress.validation.append(mean(found["validation"]))
        if not math.isfinite(progress.losses[-1]):
            progress.status, progress.stop_reason = "diverged", "loss is not finite"
        elif not math.isfinite(weights):  # the epoch's last step spoilt them, which no loss has seen
            progress.status, progress.stop_reason = "diverged", "weights are not finite"
        elif (progress.validation or progress.accuracies)[-1] > self.case.train.stop_accuracy:
            split = "validation " if progress.validation else ""
            progress.stop_reason = f"{split}accuracy above {self.case.train.stop_accuracy:g}"

    def rehearse(self, before: Callable[[Callable[[], None]], None] = lambda steps: None) -> None:
        """Take every kind of step once, so that its kernels are compiled. The run is spent.

        `before` has all of them first; what that computes is never used.
        """
        self.model.train()
        for take in (before, call):
            take(self._take_all)

    def _take_all(self) -> None:
        for step, part, size in self._kinds():
            self._stand_before(step, part, size)
            step(part, size)

    def _stand_before(self, step: Step, index: int, size: int) -> None:
        """Move the step's place in the data to a batch of that size: the first, or the smaller one at the end.

        The places and the packing of another would not fit.
        """
        if step == self.train_batch:
            count, cursor, largest = self.data.train[index].count, self.cursors[index], self.case.train.batch_size
        else:
            count, cursor = self.judged[index][1].count, self.test_cursors[index]
            largest = self.evaluation_sizes()[index][0]
        cursor.fill_(0 if size == largest else count - size)

    def _kinds(self) -> list[Call]:
        """Every kind of step that the run will need."""
        kinds: list[Call] = [(self.train_batch, part, size) for part, size in dict.fromkeys(self.schedule(0))]
        for index, sizes in enumerate(self.evaluation_sizes()):
            kinds += [(self.test_batch, index, size) for size in dict.fromkeys(sizes)]
        return kinds

    def _record(self) -> Iterator[None]:
        """Record every kind of step, piece by piece; on a CPU there is nothing to record."""
        changed = [*self.optimizer.tensors(), self.loss, self.hits, self.test_losses]
        changed += [*self.cursors, *self.test_cursors]
        self.model.train()
        yield from self.recorder.record(self._kinds(), changed, self._stand_before)


class Weights:
    """What the forward reads: the parameters, or for products the optimizer's copies of them where it keeps any.

    Autocast would cast every weight in every step; the copies are written with the parameters themselves. Their
    gradients come back in half precision, as autocast's would.
    """

    def __init__(self, model: RecallModel, optimizer: AdamW) -> None:
        parameters, copies = optimizer.parameters, optimizer.copies
        place = {id(parameter): index for index, parameter in enumerate(parameters)}
        self._swaps: list[tuple[nn.Module, int]] = []
        self._leaves = [[parameter] for parameter in parameters]
        self.head = model.head_weight
        if copies:
            linear = [module for module in model.modules() if type(module) is nn.Linear and id(module.weight) in place]
            self._swaps = [(module, place[id(module.weight)]) for module in linear]
            for _, index in self._swaps:
                self._leaves[index] = [copies[index]]
            head = place[id(model.head_weight)]  # the embedding too, which is read in full precision
            self.head = copies[head]
            self._leaves[head].append(copies[head])
        self._original = parameters

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are taken by."""
        return [leaf for leaves in self._leaves for leaf in leaves]

    def by_parameter(self, gradients: tuple[Tensor, ...]) -> list[list[Tensor]]:
        """The gradients of `leaves`, those of one parameter together."""
        rest = iter(gradients)
        return [[next(rest) for _ in leaves] for leaves in self._leaves]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the copies in the place of its products' weights."""
        try:
            for module, index in self._swaps:
                module._parameters["weight"] = self._leaves[index][0]  # type: ignore[assignment]
            yield
        finally:
            for module, index in self._swaps:
                module._parameters["weight"] = self._original[index]  # type: ignore[assignment]


def build_model(case: RecallCase) -> RecallModel:
    """The model of a case with the weights of its seed; made on the CPU, so that they are the same on every device."""
    with settings_kept(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(case.seed)  # torch's own function would import its compiler first
        train = case.train
        return RecallModel(
            case.task.vocab_size, case.d_model, case.layers, init=train.init, embed_dropout=train.embed_dropout
        )


def cosine(epochs: int, epoch: int) -> float:
    """The share of the learning rate in an epoch: a cosine to zero, stepped once per epoch."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


def mean(values: list[float]) -> float:
    """The unweighted mean."""
    return sum(values) / len(values)
