"""The laws about what others take for granted find mixers that break them, and say where."""

import math

import pytest
import torch
from torch import nn

from basedbench.checking.laws import LAWS, broken
from basedbench.checking.subject import Subject
from basedbench.mixers import Mixer, registry
from basedbench.models import Dropout

NAN = float("nan")


class Fading(Mixer):
    """The inputs so far, each with what is left of it, through a matrix.

    state_bytes = a * d
    """

    name = "fading"
    rate = -0.5  # the logarithm of what is left after a token

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.proj = nn.Linear(d_model, d_model)
        self.scale = nn.Parameter(torch.ones(d_model))

    def left(self, length, dtype):
        age_LL = torch.arange(length)[:, None] - torch.arange(length)
        return (self.rate * age_LL.to(dtype).relu()).exp().tril()

    def forward(self, x_BLD):
        wide_BLD = x_BLD if x_BLD.dtype == torch.float64 else x_BLD.float()
        y_BLD = self.left(x_BLD.shape[1], wide_BLD.dtype) @ wide_BLD
        return self.proj((y_BLD * self.scale).to(x_BLD.dtype))

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return {"sum": torch.zeros(batch_size, self.d_model, dtype=wide, device=device)}

    def step(self, x_BD, state):
        sum_BD = math.exp(self.rate) * state["sum"] + x_BD
        return self.proj((sum_BD * self.scale).to(x_BD.dtype)), {"sum": sum_BD}


class Empty(Fading):
    """Its scale is filled where training begins."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.scale = nn.Parameter(torch.full((d_model,), NAN))

    def initialise(self, layers, init):
        super().initialise(layers, init)
        nn.init.ones_(self.scale)


class Unfilled(Fading):
    """Nothing fills its scale, which may be anything."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.scale = nn.Parameter(torch.empty(d_model))


class Raises(Fading):
    def initialise(self, layers, init):
        raise RuntimeError("boom")


class TakesNothing(Fading):
    def initialise(self):
        pass


class BeginsAtZero(Fading):
    """What it forgets to do in a step does not show before its last product is trained."""

    def initialise(self, layers, init):
        nn.init.zeros_(self.proj.weight)

    def step(self, x_BD, state):
        return self.proj(x_BD), state


class Overflows(Fading):
    """What is left, as a quotient of two exponentials."""

    def left(self, length, dtype):
        total_L = self.rate * torch.arange(length, dtype=dtype)
        return (total_L.exp()[:, None] * (-total_L).exp()).tril()


class BreaksLate(Fading):
    """Forgets all at token 300."""

    def left(self, length, dtype):
        block_L = torch.arange(length) >= 300
        return super().left(length, dtype) * (block_L[:, None] == block_L)


class MasksTooLate(Fading):
    """Right numbers, but no gradient: that of what is masked is infinite."""

    def forward(self, x_BLD):
        length = x_BLD.shape[1]
        age_LL = (torch.arange(length)[:, None] - torch.arange(length)).to(x_BLD.dtype)
        left_LL = (self.rate * self.scale.mean() * age_LL).exp().where(age_LL >= 0, 0)
        return self.proj(left_LL @ x_BLD)


class Draws(Fading):
    """Its dropout does not ask whether it is in training."""

    def forward(self, x_BLD):
        return nn.functional.dropout(super().forward(x_BLD), 0.1)


class Drops(Fading):
    """Its dropout does, and is right."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.dropout = Dropout(0.3)

    def forward(self, x_BLD):
        return self.dropout(super().forward(x_BLD))


class PeeksInTraining(Fading):
    def forward(self, x_BLD):
        y_BLD = super().forward(x_BLD)
        return y_BLD + 0.1 * y_BLD.roll(-1, 1) if self.training else y_BLD


class BlendsInTraining(Drops):
    """Each sequence sees the one before it."""

    def forward(self, x_BLD):
        y_BLD = super().forward(x_BLD)
        return torch.cat((y_BLD[:1], y_BLD[1:] + 0.1 * y_BLD[:-1])) if self.training else y_BLD


class NormsTheBatch(Fading):
    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, x_BLD):
        return super().forward(self.norm(x_BLD.mT).mT)

    def step(self, x_BD, state):
        return super().step(self.norm(x_BD), state)


class Hides(Fading):
    """Its sum is on the module; begins anew with every state, so that one text alone is right.

    state_bytes = e
    """

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        self.kept = super().init_state(batch_size, max_length, dtype, device)
        return {"none": torch.zeros(batch_size, 1, dtype=dtype, device=device)}

    def step(self, x_BD, state):
        y_BD, self.kept = super().step(x_BD, self.kept)
        return y_BD, state


@pytest.fixture(autouse=True)
def _own_registry(own_registries):
    """Whatever a test registers is gone after it."""


def breaches(cls: type[Mixer]) -> dict[str, list[str]]:
    """The broken laws by name."""
    registry.register(type(cls.__name__, (cls,), {"name": "under_test", "__doc__": cls.__doc__ or Fading.__doc__}))
    found = {law.name: [str(one) for one in broken(law, Subject("under_test", 8))] for law in LAWS}
    return {name: some for name, some in found.items() if some}


@pytest.mark.parametrize("cls", [Fading, Empty, Drops])
def test_sound_mixers_keep_all_laws(cls):
    assert breaches(cls) == {}


def test_a_parameter_that_nothing_fills():
    told = breaches(Unfilled)["initialise can be called and gives numbers"]
    assert told[0].startswith("the parameter scale after initialise(2, 'published'): 8 of 8 numbers are not finite")


@pytest.mark.parametrize(
    ("cls", "told"),
    [(Raises, "raises RuntimeError: boom"), (TakesNothing, "takes 1 positional argument but 3 were given")],
)
def test_an_initialise_that_the_trainer_cannot_call(cls, told):
    found = breaches(cls)["initialise can be called and gives numbers"]
    assert told in found[0]
    assert found[0].endswith("(the trainer calls initialise(2, 'published'), its layers and init)")


def test_it_is_begun_as_in_the_model_that_trains_it():
    given = []

    class Asks(Fading):
        def initialise(self, layers, init):
            given.append((layers, init))

    registry.register(type("Asks", (Asks,), {"name": "under_test"}))
    Subject("under_test", 8).build()
    Subject("under_test", 8, layers=4, init="correct").build()
    assert given == [(2, "published"), (4, "correct")]


def test_what_begins_at_zero_hides_nothing():
    assert (
        "prefill of 2 tokens, first at position 1: differs"
        in breaches(BeginsAtZero)["forward prefill and steps agree"][0]
    )


def test_an_overflow_in_float32_beyond_short_sequences():
    found = breaches(Overflows)
    assert list(found) == ["numbers are finite"]
    (told,) = found["numbers are finite"]
    assert told.startswith("forward of 1024 tokens in float32, first at position 178: 846 of 1,024 outputs are not")


def test_one_that_breaks_beyond_short_sequences():
    found = breaches(BreaksLate)
    assert list(found) == ["forward prefill and steps agree"]
    assert "1024 steps, first at position 300: differs" in found["forward prefill and steps agree"][1]


def test_gradients_that_are_not_numbers():
    assert (
        "the gradient of scale over 1024 tokens in float32: not finite" in breaches(MasksTooLate)["numbers are finite"]
    )


def test_what_is_drawn_in_evaluation():
    found = breaches(Draws)
    assert "forward of the same input again, first at position 0" in found["answers are the same again"][0]
    assert next(law.name for law in LAWS if law.first and law.name in found) == "answers are the same again"


TRAINING = "training is causal and each sequence alone"


def test_one_that_is_not_causal_in_training():
    found = breaches(PeeksInTraining)
    assert list(found) == [TRAINING]
    (told,) = found[TRAINING]
    assert told.startswith("the output at position 19 in training: changes by")


def test_sequences_that_see_each_other_in_training_beside_dropout():
    found = breaches(BlendsInTraining)
    assert list(found) == [TRAINING]
    (told,) = found[TRAINING]
    assert told.startswith("a sequence in training, first at position 0: changes by")
    assert told.endswith("when the other sequences of the batch change")


def test_a_norm_over_batch_and_length():
    found = breaches(NormsTheBatch)
    assert list(found) == [TRAINING]
    assert len(found[TRAINING]) == 2


def test_memory_on_the_module():
    told = breaches(Hides)["memory is in the state"]
    assert told[0].startswith("steps of two texts by turns, first at position 1: differs by")
