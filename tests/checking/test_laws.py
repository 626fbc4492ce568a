"""The contract's laws find mixers that break them, and say where."""

import re

import pytest
import torch
from torch import nn

from basedbench.checking.laws import LAWS, broken
from basedbench.checking.subject import Subject
from basedbench.errors import UserError
from basedbench.mixers import Mixer, registry
from basedbench.models import Dropout


class Average(Mixer):
    """The mean of the inputs so far, through a matrix.

    state_bytes = a * d + 4
    """

    name = "average"

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x_BLD):
        count_L1 = torch.arange(1, x_BLD.shape[1] + 1, device=x_BLD.device).unsqueeze(-1)
        wide_BLD = x_BLD if x_BLD.dtype == torch.float64 else x_BLD.float()
        return self.proj((wide_BLD.cumsum(1) / count_L1).to(x_BLD.dtype))

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total = torch.zeros(batch_size, self.d_model, dtype=wide, device=device)
        return {"total": total, "count": torch.zeros(batch_size, 1, dtype=torch.int32, device=device)}

    def step(self, x_BD, state):
        state = {"total": state["total"] + x_BD, "count": state["count"] + 1}
        return self.proj((state["total"] / state["count"]).to(x_BD.dtype)), state


class Peeks(Average):
    """Not causal: the mean over the whole sequence."""

    def forward(self, x_BLD):
        return self.proj(x_BLD.mean(1, keepdim=True).expand_as(x_BLD))


class Drifts(Average):
    """The step forgets the newest token from the third on."""

    def step(self, x_BD, state):
        y_BD, after = super().step(x_BD, state)
        late = (state["count"] >= 2).to(y_BD.dtype)
        return y_BD + 1e-3 * late, after


class Grows(Average):
    """The state keeps every input."""

    def step(self, x_BD, state):
        y_BD, after = super().step(x_BD, {key: state[key] for key in ("total", "count")})
        seen = state.get("seen", x_BD[:, None])
        return y_BD, after | {"seen": torch.cat([seen, x_BD[:, None]], 1)}


class Widens(Average):
    """Outputs in float32, whatever comes in."""

    def forward(self, x_BLD):
        return super().forward(x_BLD).float()


class Blends(Average):
    """Sequences of a batch see each other."""

    def forward(self, x_BLD):
        return super().forward(x_BLD) + 1e-3 * x_BLD.mean(0)


class RunsOn(Average):
    """Takes packed examples, and averages over those before."""

    @classmethod
    def packs(cls, options, *, asked):
        return True

    def forward(self, x_BLD, packing=None):
        return super().forward(x_BLD)


class Spreads(Average):
    """Takes packed examples as a batch, whose sums are each alone."""

    @classmethod
    def packs(cls, options, *, asked):
        return True

    def forward(self, x_BLD, packing=None):
        if packing is None:
            return super().forward(x_BLD)
        return packing.gather(super().forward(packing.spread(x_BLD)))


class Doubled(Spreads):
    """With a forward of its own, which knows of no packed examples."""

    def forward(self, x_BLD):
        return 2 * super().forward(x_BLD)

    def step(self, x_BD, state):
        y_BD, state = super().step(x_BD, state)
        return 2 * y_BD, state


class StaysSpread(Average):
    """Gives back the batch."""

    @classmethod
    def packs(cls, options, *, asked):
        return True

    def forward(self, x_BLD, packing=None):
        return super().forward(x_BLD if packing is None else packing.spread(x_BLD))


class TakesNone(Average):
    """Takes packed examples without a word of them in `forward`."""

    @classmethod
    def packs(cls, options, *, asked):
        return True


class AsksItself(Spreads):
    """Nobody has an instance where that is asked."""

    def packs(self, options, *, asked):
        return True


class Detached(Average):
    """No gradient reaches the input through the mean."""

    def forward(self, x_BLD):
        return super().forward(x_BLD.detach())


class Scribbles(Average):
    """Halves what it is given."""

    def step(self, x_BD, state):
        return super().step(x_BD.mul_(0.5), state)


class Leaves(Average):
    """Ends the process."""

    def forward(self, x_BLD):
        raise SystemExit(3)


class Misstates(Average):
    """The docstring is wrong.

    state_bytes = 2 * d
    """


class Misspells(Average):
    """A name in the docstring is unknown.

    state_bytes = a * dim
    """


class Reads(Average):
    """A branch on a value."""

    def forward(self, x_BLD):
        return super().forward(x_BLD) if x_BLD.sum().item() else x_BLD


class Breaks(Average):
    """The step raises."""

    def step(self, x_BD, state):
        raise ValueError("no step yet \udcff")


class Turns(Average):
    """A parameter of another dtype, which a cast of the whole model would halve."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.turn = nn.Parameter(torch.ones(d_model, dtype=torch.complex64))

    def forward(self, x_BLD):
        return super().forward(x_BLD) * self.turn.real.to(x_BLD.dtype)

    def step(self, x_BD, state):
        y_BD, state = super().step(x_BD, state)
        return y_BD * self.turn.real.to(x_BD.dtype), state


class Complex(Average):
    """Its state counts in a complex number, in the prefill with another imaginary part."""

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        state = super().init_state(batch_size, max_length, dtype, device)
        return state | {"count": state["count"].to(torch.complex64)}

    def step(self, x_BD, state):
        y_BD, after = super().step(x_BD, state | {"count": state["count"].real.int()})
        return y_BD, after | {"count": state["count"] + 1}

    def prefill(self, x_BLD, max_length=None):
        y_BLD, state = super().prefill(x_BLD, max_length)
        return y_BLD, state | {"count": state["count"] + 2j}


class Drops(Average):
    """nn.Dropout instead of ours."""

    def forward(self, x_BLD):
        return super().forward(nn.functional.dropout(x_BLD, 0.1, self.training))


class LaterChunks(Average):
    """Chunks behind the first 64 tokens see all of themselves, and forget what was before."""

    def forward(self, x_BLD):
        means = [x_BLD[:, start : start + 64].mean(1, keepdim=True) for start in range(64, x_BLD.shape[1], 64)]
        later_BLD = torch.cat([x_BLD[:, :0], *(mean_B1D.expand(-1, 64, -1) for mean_B1D in means)], 1)
        head_BLD = super().forward(x_BLD[:, :64])
        return torch.cat((head_BLD, self.proj(later_BLD[:, : max(x_BLD.shape[1] - 64, 0)])), 1)


class Tail(Average):
    """What is left behind the last whole chunk of 64 sees all of itself."""

    def forward(self, x_BLD):
        y_BLD, whole = super().forward(x_BLD), x_BLD.shape[1] // 64 * 64
        if not whole:
            return y_BLD
        return torch.cat((y_BLD[:, :whole], y_BLD[:, -1:].expand_as(y_BLD[:, whole:])), 1)


class ForgetsPrompts(Average):
    """A prefill leaves the state of its last 64 tokens."""

    def prefill(self, x_BLD, max_length=None):
        _, state = super().prefill(x_BLD[:, -64:], max_length)
        return self(x_BLD), state


class Short(Average):
    """No more than 64 tokens, and says so."""

    @classmethod
    def check_length(cls, options, length):
        if length > 64:
            raise UserError(f"{length} tokens are more than 64.")

    def forward(self, x_BLD):
        return super().forward(x_BLD) + torch.zeros(64, 1, dtype=x_BLD.dtype)[torch.arange(x_BLD.shape[1])]


class ShortUnsaid(Short):
    """No more than 64 tokens, and does not say so."""

    @classmethod
    def check_length(cls, options, length):
        pass


class Fourier(Average):
    """The sum by a Fourier transform, whose rounding is of the size of the largest sums."""

    def forward(self, x_BLD):
        count_L1 = torch.arange(1, x_BLD.shape[1] + 1).unsqueeze(-1)
        wide_BLD, length = (x_BLD.double() if x_BLD.dtype == torch.float64 else x_BLD.float()), 2 * x_BLD.shape[1]
        ones_FD = torch.fft.rfft(torch.ones_like(wide_BLD[0]), length, 0)
        total_BLD = torch.fft.irfft(torch.fft.rfft(wide_BLD, length, 1) * ones_FD, length, 1)[:, : x_BLD.shape[1]]
        return self.proj((total_BLD / count_L1).to(x_BLD.dtype))


class Upside(torch.autograd.Function):
    """An identity whose backward is upside down and three times too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -3 * gradient


class WrongBackward(Average):
    """A hand-written backward that is wrong in every dtype."""

    def forward(self, x_BLD):
        return Upside.apply(super().forward(x_BLD))


class Gated(Average):
    """Gates its outputs with the newest token."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.gate = nn.Linear(d_model, d_model)

    def gates(self, x):
        return self.gate(x).sigmoid()

    def forward(self, x_BLD):
        return super().forward(x_BLD) * self.gates(x_BLD)

    def step(self, x_BD, state):
        y_BD, state = super().step(x_BD, state)
        return y_BD * self.gates(x_BD), state


class HalfDetached(Gated):
    """The input gets its gradient through the mean, and none through the gate."""

    def gates(self, x):
        return super().gates(x.detach())


class OneOfABatch(Gated):
    """The gate's weight gets the gradient of a batch's first sequence, as often as there are sequences."""

    def gates(self, x):
        first = x[:1] @ self.gate.weight.T
        return (x @ self.gate.weight.detach().T + first - first.detach() + self.gate.bias).sigmoid()


class Kinked(Gated):
    """Norms in float32 whatever comes in, kinks, a jump whose gradient is none, draws in training."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.scale, self.dropout = nn.Parameter(torch.ones(d_model)), Dropout(0.1)

    def gates(self, x):
        normed = nn.functional.rms_norm(x.float(), x.shape[-1:]).to(x.dtype) * self.scale
        gate = self.gate(self.dropout(normed))
        return gate.relu() + (gate > 0.1).to(x.dtype) + 0.5


@pytest.fixture(autouse=True)
def _own_registry(own_registries):
    """Whatever a test registers is gone after it."""


def breaches(cls: type[Mixer]) -> dict[str, list[str]]:
    """The broken laws by name."""
    registry.register(type(cls.__name__, (cls,), {"name": "under_test", "__doc__": cls.__doc__}))
    found = {law.name: [str(one) for one in broken(law, Subject("under_test", 8))] for law in LAWS}
    return {name: some for name, some in found.items() if some}


def test_a_sound_mixer_keeps_all_laws():
    assert breaches(Average) == {}


def test_one_that_is_not_causal():
    found = breaches(Peeks)
    assert "the output at position 0: changes by" in found["causal"][0]
    assert "from position 20 on" in found["causal"][0]


def test_packed_examples_as_a_batch_are_each_alone_also_at_asked_tokens():
    assert breaches(Spreads) == {}


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (StaysSpread, "the output of packed examples: shape (4, 24, 8) for an input of (1, 56, 8)"),
        (TakesNone, "takes 2 positional arguments but 3 were given"),
        (AsksItself, "missing 1 required positional argument: 'options'"),
    ],
)
def test_ones_that_cannot_take_packed_examples(cls, told):
    found = breaches(cls)
    assert set(found) == {"packed examples are each alone"}
    assert told in found["packed examples are each alone"][0]


def test_one_that_does_not_begin_anew_at_a_packed_example():
    found = breaches(RunsOn)
    assert set(found) == {"packed examples are each alone"}
    assert "a packed example of 16 tokens" in found["packed examples are each alone"][0]
    assert "forward_asked of packed examples" in found["packed examples are each alone"][-1]


@pytest.mark.parametrize(("kind", "packs"), [(Spreads, True), (Doubled, False)])
def test_packed_examples_are_for_whom_they_were_written(kind, packs):
    """Whoever writes `packs` need not write forward_asked; whoever writes a newer forward has not written `packs`."""
    assert "packed examples are each alone" not in breaches(kind)
    for asked in (False, True):
        assert kind.packs_as_it_is(kind.resolve(8, {}), asked=asked) is packs


def test_one_that_is_not_causal_beyond_its_first_chunk():
    found = breaches(LaterChunks)
    assert len(found["causal"]) == 3  # at 201 tokens twice, and at 1,024
    assert found["causal"][0].startswith("the output at position 128 of 201 tokens: changes by")
    assert found["causal"][0].endswith("from position 150 on change")
    assert found["forward prefill and steps agree"][1].startswith("201 steps, first at position 64: differs")
    assert "gradients are right" not in found


def test_one_that_is_not_causal_in_what_is_left_behind_whole_chunks():
    found = breaches(Tail)
    assert [text.partition(":")[0] for text in found["causal"]] == ["the output at position 192 of 201 tokens"]
    assert "201 steps, first at position 192: differs" in found["forward prefill and steps agree"][1]


def test_a_prefill_whose_state_forgets_beyond_a_chunk():
    found = breaches(ForgetsPrompts)
    assert list(found) == ["prefill then steps"]
    assert found["prefill then steps"][0].startswith("prefill of 193 tokens, then steps, first at position 193")


def test_a_mixer_of_short_sequences_is_asked_for_no_longer_ones():
    assert breaches(Short) == {}


def test_one_that_does_not_say_what_it_takes_is_told_how():
    raised = breaches(ShortUnsaid)["causal"]
    assert raised[0].endswith("(with 201 tokens; a mixer that takes fewer refuses them in check_length)")


def test_rounding_of_a_fourier_transform_is_no_leak():
    assert breaches(Fourier) == {}


def test_a_step_that_differs_names_the_position():
    found = breaches(Drifts)
    assert found["forward prefill and steps agree"][0].startswith("prefill of 17 tokens, first at position 2: differs")
    assert "causal" not in found
    assert "state keeps its size" not in found


def test_a_state_that_grows():
    found = breaches(Grows)
    assert "state 'seen' after step 1: (3, 2, 8) float32, before missing" in found["state keeps its size"][0]


def test_a_wrong_dtype():
    found = breaches(Widens)
    assert "the output of forward: float32 for an input in bfloat16" in found["output has shape and dtype"]


def test_sequences_that_see_each_other():
    assert "one by one, first at position 0" in breaches(Blends)["sequences are independent"][0]


def test_an_input_that_is_written_into():
    assert breaches(Scribbles)["inputs are left as they are"][0].startswith("the input of prefill: changes by up to")


def test_one_that_exits_breaks_laws_and_ends_nothing():
    assert breaches(Leaves)["causal"] == [
        "test_laws.py line " + str(_line_of("raise SystemExit")) + ": raises SystemExit: 3"
    ]


def _line_of(text):
    return next(number for number, line in enumerate(open(__file__), 1) if text in line)


def test_a_missing_gradient():
    assert "the gradient of input" in breaches(Detached)["gradients are right"][0]


def test_a_backward_that_is_wrong_in_every_dtype():
    found = breaches(WrongBackward)
    assert list(found) == ["gradients are right"]
    told = found["gradients are right"]
    wrong = [text.partition(":")[0].removeprefix("the gradient of ") for text in told]
    assert wrong == ["input", "proj.weight", "proj.bias"]
    claimed, slope = re.findall(r"-?\d+\.\d+", told[0])
    assert float(claimed) == pytest.approx(-3 * float(slope), rel=1e-4)


def test_a_gradient_that_lacks_a_part_is_named():
    found = breaches(HalfDetached)
    assert list(found) == ["gradients are right"]
    assert [text.partition(":")[0] for text in found["gradients are right"]] == ["the gradient of input"]


def test_a_gradient_of_another_sequence_is_named():
    found = breaches(OneOfABatch)["gradients are right"]
    assert "the gradient of gate.weight" in [text.partition(":")[0] for text in found]


def test_kinks_jumps_draws_and_norms_in_float32_have_right_gradients():
    assert breaches(Kinked) == {}


def test_a_size_that_is_not_as_stated():
    found = breaches(Misstates)
    assert list(found) == ["state has the stated size"]
    assert "36 bytes, where 1 x 16 are stated (2 * d)" in found["state has the stated size"][0]


def test_a_stated_size_that_cannot_be_computed():
    (told,) = breaches(Misspells)["state has the stated size"]
    assert "the docstring's line state_bytes = ..." in told
    assert "'a * dim': name 'dim' is not defined; it may name d (d_model), L (tokens)" in told


def test_a_branch_on_a_value():
    found = breaches(Reads)
    assert list(found) == ["nothing is read back"]
    assert "test_laws.py line" in found["nothing is read back"][0]


def test_what_a_mixer_raises_is_a_breach():
    found = breaches(Breaks)
    assert "raises ValueError: no step yet ?" in found["forward prefill and steps agree"][0]
    assert "causal" not in found


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_a_parameter_that_cannot_be_trained():
    found = breaches(Turns)
    assert found == {"parameters can be trained": ["the parameter turn: complex64, not float32"]}
    with pytest.raises(UserError, match="its parameter turn is torch"):
        registry.get_mixer("under_test").build(8, {})


def test_imaginary_parts_of_a_state_count():
    found = breaches(Complex)
    assert found["prefill leaves the state of steps"] == ["state 'count' after a prefill: differs by up to 2"]
    assert registry.get_mixer("under_test")(8).zoology_elements(1) == 8 + 2


def test_what_is_drawn_from_the_global_generator():
    assert list(breaches(Drops)) == ["randomness has a generator of its own"]
