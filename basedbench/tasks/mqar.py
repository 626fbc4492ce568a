"""Multi-query associative recall (MQAR): read K key-value pairs, then answer with the value when a key comes again.

The distribution is that of the BASED paper's Figure 2 (Arora et al. 2024, arXiv 2402.18668; zoology's generator):

    k1 v1 k2 v2 ... kK vK | . . k2 . . . kK . k1 . . .      the label v of a key sits at the query position itself

Keys are K distinct tokens of [1, V//2), values K distinct tokens of [V//2, V), both uniform without replacement. The
region behind the context has (L - 2K) / 2 slots of two tokens; K distinct slots are drawn successively without
replacement with weights p_i ~ i^(power_a - 1), i = 1 ..., and the j-th drawn belongs to key j, which stands in the
slot's first token. The rest is filler, uniform in [0, V) or zero. With `passes` > 1 the context is repeated before the
questions (Just Read Twice, Arora et al. 2024, arXiv 2407.05483).

Try: python -c "from basedbench.tasks import MQAR; print(*MQAR(64, 16, 2).examples(0, 'train', 0, 4), sep='\\n')"
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from operator import index

import torch
from torch import Tensor

from basedbench.errors import UserError, nearest
from basedbench.tasks.hashing import batches_hash
from basedbench.tasks.random import below, distinct, example_states, exponential, random_bits, stream_key

FILLERS = ("random", "zero")
MAX_POWER_A = 10.0  # weights beyond would leave the range of float64

Batch = tuple[Tensor, Tensor, Tensor]

_FORMAT = 1  # raise it when the same arguments are meant to give other examples
_CPU_SLICE = 1 << 18  # tokens made at once: on a CPU as many as stay in its cache,
_GPU_SLICE = 1 << 23  # on a GPU as many as keep it busy, at about half a GB of temporary memory


@dataclass(frozen=True)
class MQAR:
    """One segment of MQAR: examples of `length` tokens with `pairs` questions each.

    vocab_size: tokens 0 ... vocab_size - 1, may be odd; length: the whole sequence, all passes included; pairs: K.
    power_a: 0.01 asks most keys soon (weights about 1/i), 1 spreads the questions evenly.
    filler: what fills the unasked places of the query region, "random" tokens or "zero".
    Raises UserError naming every constraint that is violated.
    """

    vocab_size: int = 8192
    length: int = 256
    pairs: int = 64
    power_a: float = 0.01
    filler: str = "random"
    passes: int = 1

    def __post_init__(self) -> None:
        problems = list(self._number_problems()) or [*self._length_problems(), *self._value_problems()]
        if problems:
            raise UserError(f"MQAR {self.name} cannot be made: {'; '.join(problems)}")

    def _number_problems(self) -> Iterator[str]:
        """Whole numbers of other libraries become Python's: equal tasks are to have equal examples."""
        for name in ("vocab_size", "length", "pairs", "passes"):
            value = getattr(self, name)
            try:
                if isinstance(value, bool):
                    raise TypeError
                object.__setattr__(self, name, index(value))
            except TypeError:
                yield f"{name} is {value!r} and must be a whole number"
        if isinstance(self.power_a, bool) or not hasattr(self.power_a, "__float__"):
            yield f"power_a is {self.power_a!r} and must be a number"
        else:
            object.__setattr__(self, "power_a", float(self.power_a))
        if not isinstance(self.filler, str):
            yield f"filler is {self.filler!r} and must be a word"

    def _length_problems(self) -> Iterator[str]:
        if self.pairs < 1:
            yield f"pairs is {self.pairs} and must be at least 1"
        if self.passes < 1:
            yield f"passes is {self.passes} and must be at least 1"
        if self.length % 2:
            yield f"length is {self.length} and must be even"
        passes = max(self.passes, 1)
        shortest = 2 * (passes + 1) * self.pairs  # two tokens per pair in each pass, two per question
        if self.length < shortest:
            bound = f"{2 * (passes + 1)} x pairs = {shortest} with passes = {passes}"
            yield f"length is {self.length} and must be at least {bound}"

    def _value_problems(self) -> Iterator[str]:
        if self.vocab_size <= self.length:
            yield f"vocab_size is {self.vocab_size} and must be above length = {self.length}"
        if self.vocab_size // 2 - 1 < self.pairs:
            yield f"pairs is {self.pairs} and must be at most vocab_size // 2 - 1 = {self.vocab_size // 2 - 1}"
        if not 0 < self.power_a <= MAX_POWER_A:
            yield f"power_a is {self.power_a} and must be above 0 and at most {MAX_POWER_A:g}"
        if self.filler not in FILLERS:
            yield f"filler is {self.filler!r}; {nearest(self.filler, FILLERS)}"

    @property
    def name(self) -> str:
        """The segment's label in result rows: "LxK", for example "64x4"."""
        return f"{self.length}x{self.pairs}"

    @property
    def query_start(self) -> int:
        """The first position behind the context: 2 x pairs x passes."""
        return 2 * self.pairs * self.passes

    @property
    def space(self) -> int:
        """The number of slots, of two tokens each, in which a question can stand."""
        return (self.length - self.query_start) // 2

    def examples(
        self, seed: int, split: str, start: int, count: int, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Examples start ... start + count - 1 of a split ("train", "test", or any other word).

        Returns tokens (B,L), positions (B,K) of the questions, ascending, and targets (B,K), the value to be named at
        each; all int64 on `device`. An example depends on seed, split, this segment's fields and its index alone.
        """
        tokens_BL = torch.empty((count, self.length), dtype=torch.int64, device=device)
        positions_BK = torch.empty((count, self.pairs), dtype=torch.int64, device=device)
        targets_BK = torch.empty_like(positions_BK)
        done = 0
        for tokens, positions, targets in self.batches(seed, split, start, count, device):
            rows = slice(done, done + len(tokens))
            tokens_BL[rows], positions_BK[rows], targets_BK[rows] = tokens, positions, targets
            done = rows.stop
        return tokens_BL, positions_BK, targets_BK

    def batches(
        self, seed: int, split: str, start: int, count: int, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """The same as `examples`, in consecutive pieces of a size that suits the device; memory stays bounded."""
        handicap_S = self._handicap(device)
        for states_B in self._states(seed, split, start, count, device):
            yield self._generate(states_B, handicap_S)

    def distances(self, seed: int, split: str, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """How many positions lie between each question and the nearest place where its answer stands: (B,K) int64.

        In the order of `positions`; with several passes the nearest place is in the last one.
        """
        handicap_S = self._handicap(device)
        parts = [self._questions(states_B, handicap_S) for states_B in self._states(seed, split, start, count, device)]
        none = torch.empty((0, self.pairs), dtype=torch.int64, device=device)
        return torch.cat([none, *(2 * (self.pairs + slots_BK - asked_BK) - 1 for slots_BK, asked_BK in parts)])

    def data_hash(self, seed: int, split: str, count: int, start: int = 0, device: torch.device | str = "cpu") -> str:
        """16 hex digits for these examples (see `batches_hash`); `device` says where they are made, nothing more."""
        return batches_hash(self.batches(seed, split, start, count, device))

    def _states(self, seed: int, split: str, start: int, count: int, device: torch.device | str) -> Iterator[Tensor]:
        segment = (self.vocab_size, self.length, self.pairs, float(self.power_a), self.filler, self.passes)
        key = stream_key("mqar", _FORMAT, index(seed), split, *segment)
        rows = max(1, (_CPU_SLICE if torch.device(device).type == "cpu" else _GPU_SLICE) // self.length)
        for first in range(start, start + count, rows):
            yield example_states(key, first, min(rows, start + count - first), device)

    def _handicap(self, device: torch.device | str) -> Tensor:
        """1 / w_i for each slot, S = space of them: what an exponential is multiplied by in the race for slots."""
        return torch.tensor(_inverse_weights(self.space, float(self.power_a)), dtype=torch.float64, device=device)

    def _questions(self, states_B: Tensor, handicap_S: Tensor) -> tuple[Tensor, Tensor]:
        """Slots that hold a question, ascending, and the index of the key asked in each: (B,K), (B,K).

        A race gives the successive weighted draw: E_i / w_i with E_i exponential, in the order of arrival
        (Efraimidis and Spirakis 2006: "Weighted random sampling with a reservoir").
        """
        arrival_BS = exponential(random_bits(states_B, 2 * self.pairs, self.space)).mul_(handicap_S)
        slot_of_key_BK = torch.sort(arrival_BS, dim=1, stable=True).indices[:, : self.pairs]
        slots_BK, asked_BK = torch.sort(slot_of_key_BK, dim=1)
        return slots_BK, asked_BK

    def _generate(self, states_B: Tensor, handicap_S: Tensor) -> Batch:
        K, V, context = self.pairs, self.vocab_size, self.query_start
        keys_BK = distinct(random_bits(states_B, 0, K), V // 2 - 1).add_(1)
        values_BK = distinct(random_bits(states_B, K, K), V - V // 2).add_(V // 2)
        slots_BK, asked_BK = self._questions(states_B, handicap_S)
        positions_BK = slots_BK * 2 + context
        tokens_BL = states_B.new_zeros((len(states_B), self.length))
        tokens_BL[:, :context] = torch.stack((keys_BK, values_BK), 2).flatten(1).repeat(1, self.passes)
        if self.filler == "random":
            tokens_BL[:, context:] = below(random_bits(states_B, 2 * K + self.space, self.length - context), V)
        tokens_BL.scatter_(1, positions_BK, keys_BK.gather(1, asked_BK))
        return tokens_BL, positions_BK, values_BK.gather(1, asked_BK)


@lru_cache(maxsize=64)
def _inverse_weights(space: int, power_a: float) -> tuple[float, ...]:
    """i^(1 - power_a) for i = 1 ... space, in decimal arithmetic: the same floats whatever the machine's pow does."""
    context = Context(prec=20)
    exponent = 1 - Decimal(power_a)
    return tuple(float(context.power(Decimal(i), exponent)) for i in range(1, space + 1))


def window_accuracy(
    task: MQAR, window: int, seed: int, split: str, count: int, device: torch.device | str = "cpu"
) -> float:
    """What a model scores that recalls exactly what lies within `window` positions, over the first `count` examples.

    P(query position - value position <= window): the closed expectation of a sliding window that sees keys
    i - window ... i, before what chance adds.
    """
    return (task.distances(seed, split, 0, count, device) <= window).double().mean().item()
