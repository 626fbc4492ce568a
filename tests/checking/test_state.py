"""The look at a user's mixer before a sweep: it finds states that answers do not rest on, and accuses nobody else."""

import pytest
import torch
from torch import nn

from basedbench.checking import state
from basedbench.checking.state import set_up, state_doubt, with_doubts
from basedbench.checking.subject import Subject
from basedbench.mixers import Mixer, State, mixer_names, register
from basedbench.timing import waking
from basedbench.training.cases import recall_cases
from tests.training.conftest import tiny_suite

pytestmark = pytest.mark.usefixtures("own_registries")
LENGTH = 64
OURS = mixer_names()


class Sum(Mixer):
    """Honest: the running sum."""

    name = "sum"

    def __init__(self, d_model: int, **options: object) -> None:
        super().__init__(d_model, **options)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.out(x_BLD.cumsum(1))

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None) -> State:  # type: ignore[no-untyped-def]
        return {"sum": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device)}

    def step(self, x_BD: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        sum_BD = state["sum"] + x_BD
        return self.out(sum_BD), {"sum": sum_BD}


class Cheat(Sum):
    name = "cheat"

    def step(self, x_BD, state):  # type: ignore[no-untyped-def]
        return self.out(x_BD), state


class Leak(Sum):
    name = "leak"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        return self.out(x_BLD.cumsum(1) + x_BLD.roll(-1, 1))


class Hides(Sum):
    """Its sum is in the module."""

    name = "hides"

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):  # type: ignore[no-untyped-def]
        self.kept_BD = torch.zeros(batch_size, self.d_model)
        return {"s": torch.zeros(batch_size, 1)}

    def step(self, x_BD, state):  # type: ignore[no-untyped-def]
        self.kept_BD = self.kept_BD + x_BD
        return self.out(self.kept_BD), state


class Grows(Sum):
    name = "grows"

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):  # type: ignore[no-untyped-def]
        return {"sum": torch.zeros(batch_size, 0, self.d_model)}

    def step(self, x_BD, state):  # type: ignore[no-untyped-def]
        past_BLD = torch.cat((state["sum"], x_BD[:, None]), 1)
        return self.out(past_BLD.sum(1)), {"sum": past_BLD}


class Stepless(Sum):
    name = "stepless"
    step = Mixer.step


class Stateless(Sum):
    name = "stateless"
    init_state = Mixer.init_state  # type: ignore[assignment]


class Zero(Cheat):
    """Nothing shows before its last product is trained."""

    name = "zero"

    def initialise(self, layers, init):  # type: ignore[no-untyped-def]
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)


class LeaksLate(Sum):
    name = "leaks_late"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        later_BLD = torch.cat((x_BLD[:, 1:] * (torch.arange(1, x_BLD.shape[1]) > 300)[:, None], 0 * x_BLD[:, :1]), 1)
        return self.out(x_BLD.cumsum(1) + later_BLD)


class LeaksLength(Sum):
    """Its outputs say how long the text is."""

    name = "leaks_length"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        return self.out(x_BLD.cumsum(1) * (1 + x_BLD.shape[1] / 1000))


class BreaksLate(Sum):
    """Its memory is emptied beyond 300 tokens."""

    name = "breaks_late"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        return self.out(torch.cat((x_BLD[:, :300].cumsum(1), x_BLD[:, 300:].cumsum(1)), 1))


class Overflows(Sum):
    name = "overflows"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        grown_L1 = (2.0 * torch.arange(x_BLD.shape[1]))[:, None].exp()
        return self.out((x_BLD.cumsum(1) * grown_L1) / grown_L1)


class OverflowingSteps(Sum):
    name = "overflowing_steps"

    def step(self, x_BD, state):  # type: ignore[no-untyped-def]
        y_BD, state = super().step(x_BD, state)
        return y_BD / (state["sum"] != state["sum"]), state


class BeginsAsNaN(Sum):
    name = "begins_as_nan"

    def initialise(self, layers, init):  # type: ignore[no-untyped-def]
        nn.init.constant_(self.out.bias, float("nan"))


class Raises(Sum):
    name = "raises"

    def initialise(self, layers, init):  # type: ignore[no-untyped-def]
        raise RuntimeError("boom")


class Unusable(Sum):
    """Nobody can look at it here."""

    name = "unusable"

    def forward(self, x_BLD):  # type: ignore[no-untyped-def]
        raise RuntimeError("needs a GPU")


@pytest.mark.parametrize(
    ("mixer", "doubt"),
    [
        (Sum, None),
        (
            Unusable,
            "its state could not be looked at: on a CPU it raises RuntimeError: needs a GPU (test_state.py line ",
        ),
        (Cheat, "stepping differs from the forward by "),
        (Zero, "stepping differs from the forward by "),
        (Hides, "stepping differs from the forward by "),
        (Leak, "its outputs change by "),
        (Grows, "state 'sum' is not init_state's after step 1 ("),
        (Stepless, "decoding raises NotImplementedError: Stepless has no `step`"),
        (Overflows, "its state could not be looked at: forward of 64 tokens, first at position "),
        (OverflowingSteps, "64 steps, first at position 0: 64 of 64 outputs are not finite"),
        (
            BeginsAsNaN,
            "its state could not be looked at: after initialise not all numbers of its parameter out.bias are",
        ),
        (Raises, "its state could not be looked at: on a CPU it raises RuntimeError: boom (test_state.py line "),
        (Stateless, "decoding raises NotImplementedError: Stateless has no `init_state`"),
    ],
)
def test_a_state_that_answers_do_not_rest_on_is_in_doubt(mixer: type[Mixer], doubt: str | None) -> None:
    register(mixer)
    found = state_doubt(Subject(mixer.name, 16), LENGTH)
    assert found == doubt if doubt is None or found is None else found.startswith(doubt)


@pytest.mark.parametrize(
    ("mixer", "doubt"),
    [
        (Sum, None),
        (LeaksLate, "its outputs change by "),
        (LeaksLength, "its outputs change by "),
        (BreaksLate, "stepping differs from the forward by "),
    ],
)
def test_late_tokens_are_looked_at_too(mixer: type[Mixer], doubt: str | None) -> None:
    register(mixer)
    found = state_doubt(Subject(mixer.name, 16), 512)
    assert found == doubt if doubt is None or found is None else found.startswith(doubt)


@pytest.mark.parametrize("name", OURS)
def test_our_own_mixers_are_not_in_doubt(name: str) -> None:
    assert state_doubt(Subject(name, 64), 300) is None  # rwkv7 takes no 32


def test_on_a_gpu_that_is_not_the_first_kernels_go_there(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(waking, "open_device", opened.append)
    for device in ("cpu", "cuda:1"):
        set_up(device, [])
    assert opened == ["cuda:1"]


@pytest.mark.parametrize(("all_s", "most_s"), [(1e9, 60.0), (20.0, 20.0), (-5.0, 1.0)])
def test_all_looks_together_have_a_limit_too(all_s: float, most_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def look(*arguments: object) -> tuple[str | None, bool]:
        given.append(float(str(arguments[-1])))
        return None, False

    monkeypatch.setattr(state, "_look", look)
    register(Sum)
    cases = recall_cases(tiny_suite([{"mixer": "sum", "layers": ["sum"], "grid": {"d_model": [16, 8]}}]))
    begun: list[int] = []
    with_doubts(cases, [], [], limit_s=60.0, all_s=all_s, begins=lambda subject: begun.append(subject.d_model))
    assert given == pytest.approx([most_s, most_s], abs=1)
    assert begun == [16, 8]
