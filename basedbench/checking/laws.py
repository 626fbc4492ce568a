"""What every mixer promises, as laws: each looks at a mixer and yields where the promise is broken, and by how much.

The tests run them over every registered mixer, `basedbench check mixer` over yours.
"""

import logging
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from basedbench.checking.soundness import (
    answers_are_the_same_again,
    initialise_can_be_called_and_gives_numbers,
    memory_is_in_the_state,
    numbers_are_finite,
    training_is_causal_and_each_sequence_alone,
)
from basedbench.checking.subject import (
    BATCH,
    CHANGED,
    FAR,
    LEAK,
    LENGTH,
    Breach,
    Subject,
    changed_before,
    changes,
    differences,
    layout,
    layouts,
    noted,
    plain,
    size,
    stated_formula,
    steps,
)
from basedbench.errors import place_of, printable, said_by
from basedbench.kernels.asked import Questions, ask, questions_at, slots_of
from basedbench.kernels.asked import reference as rows_of
from basedbench.kernels.packing import packing_of
from basedbench.mixers import Mixer, get_mixer
from basedbench.mixers.base import PARAMETERS
from basedbench.models import Dropout

ROOM = LENGTH + 5
FEW_DIGITS = 0.05  # of bfloat16 beside float32
SLOPE = 1e-3  # of a gradient's norm, along a random direction
MOVES = 1e-6, 1e-3, 1e-8  # of a central difference: the usual one, one above float32's rounding, one between kinks
ALL_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def output_has_shape_and_dtype(subject: Subject) -> Iterator[Breach]:
    """forward, prefill and step give (B, L, D) or (B, D) in the dtype of x."""
    for dtype in ALL_DTYPES:
        mixer, x_BLD = subject.build(dtype), subject.inputs(dtype=dtype)
        with torch.inference_mode():
            found = {"forward": mixer(x_BLD), "prefill": mixer.prefill(x_BLD)[0]}
            y_BD, _ = mixer.step(x_BLD[:, 0], mixer.init_state(BATCH, LENGTH, dtype))
        for what, y, x in (*((what, y, x_BLD) for what, y in found.items()), ("step", y_BD, x_BLD[:, 0])):
            if y.shape != x.shape:
                yield Breach(f"the output of {what}", f"shape {tuple(y.shape)} for an input of {tuple(x.shape)}")
            if y.dtype != x.dtype:
                yield Breach(f"the output of {what}", f"{plain(y.dtype)} for an input in {plain(x.dtype)}")


def inputs_are_left_as_they_are(subject: Subject) -> Iterator[Breach]:
    """forward, prefill and step do not write into x: a residual stream goes by them."""
    mixer, x_BLD = subject.build(), subject.inputs()
    token_BD = x_BLD[:, 0].clone()
    calls = (
        ("forward", mixer, x_BLD),
        ("prefill", mixer.prefill, x_BLD),
        ("step", lambda x_BD: mixer.step(x_BD, mixer.init_state(BATCH, LENGTH, torch.float64)), token_BD),
    )
    with torch.inference_mode():
        for what, call, x in calls:
            before = x.clone()
            call(x)
            if not torch.equal(x, before):
                yield Breach(f"the input of {what}", f"changes by up to {float((x - before).abs().max()):.2g}")


def causal(subject: Subject) -> Iterator[Breach]:
    """No output depends on a later input, in a long sequence neither; and some depend on the inputs at all."""
    mixer, long = subject.build(), subject.longest()
    checks = [(BATCH, LENGTH, CHANGED)]
    if long > LENGTH:
        checks += [(1, long, 3 * long // 4), (1, long, long - 4)]  # amid a chunk, and in what is left for the last
    if (far := subject.longest(FAR)) > long:
        checks.append((1, far, 3 * far // 4 | 1))
    for batch, length, changed in checks:
        x_BLD = subject.inputs(batch, length)
        changed_BLD = x_BLD.clone()
        changed_BLD[:, changed:] += 10
        with torch.no_grad(), noted(length):
            y_BLD = mixer(x_BLD)
            difference_BLD = mixer(changed_BLD) - y_BLD
        if found := changed_before(difference_BLD, changed):
            amount = f"changes by {found[1]:.2g} when the inputs from position {changed} on change"
            place = f"the output at position {found[0]}"
            yield Breach(place if length == LENGTH else f"{place} of {length} tokens", amount)
        if length == LENGTH and difference_BLD.abs().max() <= LEAK * y_BLD.abs().max():
            yield Breach("the outputs", "do not depend on the inputs")


def forward_prefill_and_steps_agree(subject: Subject) -> Iterator[Breach]:
    """forward = prefill = repeated step, from one token up, and beyond the chunks that a parallel form may have."""
    mixer, long, far = subject.build(), subject.longest(), subject.longest(FAR)
    checks = [(BATCH, length) for length in (1, 2, 17, LENGTH)] + [(1, long)] * (long > LENGTH)
    checks += [(1, far)] * (far > long)
    for batch, length in checks:
        x_BLD = subject.inputs(batch, length)
        with torch.inference_mode(), noted(length):
            y_BLD = mixer(x_BLD)
            stepped_BLD, _ = steps(mixer, x_BLD, mixer.init_state(batch, length, torch.float64))
            by_steps = length > long and type(mixer).prefill is Mixer.prefill  # the default; slow, and not another
            filled_BLD = stepped_BLD if by_steps else mixer.prefill(x_BLD)[0]
        yield from differences(f"prefill of {length} tokens", filled_BLD, y_BLD)
        yield from differences(f"{length} steps", stepped_BLD, y_BLD)


def asked_outputs_are_rows_of_forward(subject: Subject) -> Iterator[Breach]:
    """forward_asked gives forward's outputs at the asked tokens, in any order, and the same gradients."""
    for asked in (1, 5, LENGTH):
        mixer, x_BLD = subject.build(), subject.inputs().requires_grad_()
        positions_BK = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :asked]
        found_BKD = mixer.forward_asked(x_BLD, ask(x_BLD, questions_at(positions_BK, LENGTH)))
        rows_BKD = rows_of(mixer(x_BLD), positions_BK)
        yield from differences(f"forward_asked of {asked} tokens", found_BKD.detach(), rows_BKD.detach(), tokens=False)
        weights_BKD = torch.randn(rows_BKD.shape, dtype=x_BLD.dtype, generator=torch.Generator().manual_seed(3))
        named = {"the input": x_BLD, **{key: p for key, p in mixer.named_parameters() if p.requires_grad}}
        gradients = [
            torch.autograd.grad((y_BKD * weights_BKD).sum(), list(named.values()), allow_unused=True)
            for y_BKD in (found_BKD, rows_BKD)
        ]
        for key, mine, right in zip(named, *gradients, strict=True):
            if right is not None:
                given = torch.zeros_like(right) if mine is None else mine
                yield from differences(f"the gradient of {key} at {asked} asked tokens", given, right, tokens=False)


def packed_examples_are_each_alone(subject: Subject) -> Iterator[Breach]:
    """Where a mixer packs: examples one behind another have the outputs that each has alone."""
    mixer = subject.build()
    packing = packing_of([24, 16, 8, 8], "cpu")
    x_1TD = subject.inputs(1, packing.tokens)
    lengths = packing.starts_B.diff().tolist()
    positions_BK = torch.stack([torch.arange(8).flip(0), torch.arange(8)] * 2) + packing.starts_B.diff()[:, None] - 8
    at_1x = (positions_BK + packing.starts_B[:-1, None]).view(1, -1)
    with torch.inference_mode():
        alone = [mixer(x_1LD) for x_1LD in x_1TD.split(lengths, 1)]
        if mixer.packs_as_it_is(mixer.options, asked=False):
            y_1TD = mixer(x_1TD, packing)
            if y_1TD.shape != x_1TD.shape:
                told = f"shape {tuple(y_1TD.shape)} for an input of {tuple(x_1TD.shape)}"
                yield Breach("the output of packed examples", told)
                return
            for length, mine, right in zip(lengths, y_1TD.split(lengths, 1), alone, strict=True):
                yield from differences(f"a packed example of {length} tokens", mine, right)
        if mixer.packs_as_it_is(mixer.options, asked=True):
            questions = Questions(positions_BK, slots_of(at_1x, packing.tokens), packing)
            found_BKD = mixer.forward_asked(x_1TD, ask(x_1TD, questions))
            rows_BKD = torch.cat([rows_of(y, at[None]) for y, at in zip(alone, positions_BK, strict=True)])
            yield from differences("forward_asked of packed examples", found_BKD, rows_BKD, tokens=False)


def prefill_then_steps(subject: Subject) -> Iterator[Breach]:
    """A prefill of a part, then steps, is the forward of the whole; with room reserved and without."""
    mixer, long = subject.build(), subject.longest()
    checks: list[tuple[int, int, list[int], list[int | None]]] = [
        (BATCH, LENGTH, [1, 7, 16, LENGTH - 1], [None, ROOM]),
    ]
    if long > LENGTH:
        checks.append((1, long, [long - 8], [long]))
    for batch, length, prompts, rooms in checks:
        with torch.inference_mode(), noted(length):
            right_BLD = mixer(subject.inputs(batch, length))
        for prompt, room in product(prompts, rooms):
            x_BLD = subject.inputs(batch, length)
            with torch.inference_mode(), noted(length):
                head_BLD, state = mixer.prefill(x_BLD[:, :prompt], room)
                tail_BLD, _ = steps(mixer, x_BLD[:, prompt:], state)
            joined_BLD = torch.cat((head_BLD, tail_BLD), 1)
            yield from differences(f"prefill of {prompt} tokens, then steps", joined_BLD, right_BLD)


def prefill_leaves_the_state_of_steps(subject: Subject) -> Iterator[Breach]:
    """The state after a prefill is that after as many steps, and keeps no larger tensor alive."""
    mixer, x_BLD = subject.build(), subject.inputs()
    with torch.inference_mode():
        _, state = mixer.prefill(x_BLD, ROOM)
        _, stepped = steps(mixer, x_BLD, mixer.init_state(BATCH, ROOM, torch.float64))
    yield from layouts("the state after a prefill", state, "after steps", stepped)
    for key in state.keys() & stepped.keys():
        if state[key].shape == stepped[key].shape:
            yield from differences(f"state {key!r} after a prefill", state[key], stepped[key], tokens=False)
        if state[key].untyped_storage().nbytes() != state[key].nbytes:
            held = state[key].untyped_storage().nbytes()
            yield Breach(f"state {key!r}", f"a view of {state[key].nbytes} bytes into memory of {held}; clone it")


def state_keeps_its_size(subject: Subject) -> Iterator[Breach]:
    """A step leaves the shapes and dtypes of the state as they are, and prefill gives those of init_state."""
    for dtype in ALL_DTYPES:
        mixer, x_BLD = subject.build(dtype), subject.inputs(dtype=dtype)
        with torch.inference_mode():
            first = mixer.init_state(BATCH, ROOM, dtype)
            before, state = layout(first), first
            for position, x_BD in enumerate(x_BLD.unbind(1)):
                _, state = mixer.step(x_BD, state)
                if layout(state) != before:
                    yield from changes(f"after step {position + 1}", before, layout(state))
                    break
            _, filled = mixer.prefill(x_BLD, ROOM)
        yield from layouts(f"the state after a prefill in {plain(dtype)}", filled, "of init_state", first)
        for key, tensor in first.items():
            if not tensor.dim() or tensor.shape[0] != BATCH:
                yield Breach(f"state {key!r}", f"shape {tuple(tensor.shape)}: the first dimension must be the batch")


def sequences_are_independent(subject: Subject) -> Iterator[Breach]:
    """A batch equals its rows, one by one."""
    mixer, x_BLD = subject.build(), subject.inputs()
    with torch.no_grad():
        alone_BLD = torch.cat([mixer(x_1LD) for x_1LD in x_BLD.split(1)])
        yield from differences("a batch beside its sequences one by one", mixer(x_BLD), alone_BLD)


def ages_decode_together(subject: Subject) -> Iterator[Breach]:
    """Sequences of different lengths can be put into one state and decoded in one step."""
    mixer, x_BLD = subject.build(), subject.inputs(batch=2)
    with torch.inference_mode():
        young, old = (mixer.prefill(x_BLD[i : i + 1, :n], LENGTH)[1] for i, n in ((0, 3), (1, 20)))
        state = {key: torch.cat((young[key], old[key])) for key in young}
        y_BD, state = mixer.step(torch.stack((x_BLD[0, 3], x_BLD[1, 20])), state)
        y_BD, _ = mixer.step(torch.stack((x_BLD[0, 4], x_BLD[1, 21])), state)
        for row, length in ((0, 5), (1, 22)):
            right_D = mixer(x_BLD[row : row + 1, :length])[0, -1]
            yield from differences(f"the sequence of {length} tokens", y_BD[row], right_D, tokens=False)


def gradients_are_right(subject: Subject) -> Iterator[Breach]:
    """Gradients of the input and every parameter say how the output changes when they do; none is missing or zero.

    In float32 they are those in float64, and those agree with central differences, in a long sequence.
    """
    wide, narrow = subject.build(), subject.build(torch.float32)
    wide.load_state_dict(narrow.state_dict())
    x_BLD, weights_BLD = subject.inputs(dtype=torch.float32), torch.randn(BATCH, LENGTH, subject.d_model)
    gradients: list[dict[str, Tensor | None]] = []
    for mixer, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        leaf_BLD = x_BLD.to(dtype).requires_grad_()
        (mixer(leaf_BLD) * weights_BLD.to(dtype)).sum().backward()
        named = {key: p.grad for key, p in mixer.named_parameters() if p.requires_grad}
        gradients.append({"input": leaf_BLD.grad} | named)
    for key, exact in gradients[0].items():
        found = gradients[1][key]
        if exact is None or found is None or not exact.norm() > 0:
            yield Breach(f"the gradient of {key}", "there is none: nothing depends on it")
            continue
        error = float((found.double() - exact).norm())
        if not error < 1e-5 * float(exact.norm()) + 1e-6:
            yield Breach(f"the gradient of {key}", f"relative error {error / float(exact.norm()):.2g}, at most 1e-05")
    missing = {key for key, exact in gradients[0].items() if exact is None or not exact.norm() > 0}
    yield from _differ_from_slopes(subject, missing)


def _differ_from_slopes(subject: Subject, missing: Set[str]) -> Iterator[Breach]:
    """Where a gradient in float64 is not the slope of the output: along a random direction, each tensor for itself."""
    mixer, length = subject.build(), subject.longest()
    draws = torch.Generator().manual_seed(5)
    x_BLD = subject.inputs(2, length).requires_grad_()
    weights_BLD = torch.randn(x_BLD.shape, dtype=torch.float64, generator=draws)
    with noted(length):
        y_BLD = mixer(x_BLD)
        (y_BLD * weights_BLD).sum().backward()
    rounding = 1e-14 * float((y_BLD.detach() * weights_BLD).norm())  # of the sum
    named = {"input": x_BLD} | {key: p for key, p in mixer.named_parameters() if p.requires_grad}
    for key, leaf in named.items():
        direction = torch.randn(leaf.shape, dtype=leaf.dtype, generator=draws)
        if key in missing or leaf.grad is None:
            continue
        claimed, norm = float((leaf.grad * direction).sum()), float(leaf.grad.norm())
        slopes: list[float] = []
        for move in MOVES:
            slope = _slope(mixer, x_BLD, weights_BLD, leaf, move * direction) / move
            bound = SLOPE * max(norm, abs(slope)) + rounding / move
            if abs(slope - claimed) <= SLOPE * norm + rounding / move:
                break
            # Two that agree are no kink or rounding. If none do, nobody can say what the gradient should be.
            if any(abs(slope - other) <= bound for other in slopes):
                right = f"a central difference (float64, {length} tokens) gives {slope:.6g}"
                yield Breach(f"the gradient of {key}", f"{claimed:.6g} along a random direction, where {right}")
                break
            slopes.append(slope)


def _slope(mixer: Mixer, x_BLD: Tensor, weights_BLD: Tensor, leaf: Tensor, move: Tensor) -> float:
    """The change of the weighted sum of outputs with `leaf`, moved there and back: half of that between both ends."""
    start = leaf.detach().clone()
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            leaf.copy_(start + sign * move)
            ends.append(mixer(x_BLD))
        leaf.copy_(start)
        return float(((ends[0] - ends[1]) * weights_BLD).sum()) / 2


def state_has_the_stated_size(subject: Subject) -> Iterator[Breach]:
    """Measured state bytes are those of the line `state_bytes = ...` in the docstring, where there is one."""
    formula = stated_formula(subject.name)
    if formula is None:
        return
    given = dict(get_mixer(subject.name).resolve(subject.d_model, subject.options))
    mixer = subject.build(torch.float32)
    for dtype in ALL_DTYPES:
        for length in (1, 48):
            wide = 8 if dtype == torch.float64 else 4
            names = given | {"d": subject.d_model, "L": length, "e": dtype.itemsize, "a": wide}
            try:
                stated = eval(formula, {}, names | {"f": given.get("feature_dim")})
            except Exception as error:
                may = "d (d_model), L (tokens), e (bytes of x), a (bytes of what is added up in), and its options"
                yield Breach("the docstring's line state_bytes = ...", f"{formula!r}: {error}; it may name {may}")
                return
            for batch, device in ((1, "cpu"), (1, "meta"), (4, "cpu")):
                measured = size(mixer.init_state(batch, length, dtype, device))
                if measured != batch * stated:
                    what = f"init_state({batch}, {length}, {plain(dtype)}, {device!r})"
                    yield Breach(what, f"{measured:,} bytes, where {batch} x {stated:,} are stated ({formula})")


def bfloat16_is_close(subject: Subject) -> Iterator[Breach]:
    """In bfloat16 forward and steps are within a few percent of float32."""
    narrow, wide = subject.build(torch.bfloat16), subject.build(torch.float32)
    wide.load_state_dict(narrow.state_dict())
    x_BLD = subject.inputs(dtype=torch.bfloat16)
    with torch.inference_mode():
        exact_BLD = wide(x_BLD.float())
        stepped_BLD, _ = steps(narrow, x_BLD, narrow.init_state(BATCH, LENGTH, torch.bfloat16))
        for what, y_BLD in (("forward", narrow(x_BLD)), ("step", stepped_BLD)):
            error = float((y_BLD.float() - exact_BLD).norm() / exact_BLD.norm())
            if not error < FEW_DIGITS:
                yield Breach(f"{what} in bfloat16", f"relative error {error:.2g}, at most {FEW_DIGITS:g}")


def nothing_is_read_back(subject: Subject) -> Iterator[Breach]:
    """On tensors without values, a shape or branch that depends on data raises, as it would break a CUDA graph."""
    with FakeTensorMode(), _without_its_log():
        mixer = get_mixer(subject.name)(subject.d_model, **subject.options)
        x_BLD = torch.empty(BATCH, LENGTH, subject.d_model)
        mixer.train()(x_BLD).sum().backward()
        with torch.no_grad():
            _, state = mixer.prefill(x_BLD, 40)
            mixer.step(x_BLD[:, 0], state)
    yield from ()


def parameters_can_be_trained(subject: Subject) -> Iterator[Breach]:
    """All are float32: the optimizer takes no others, and a cast of the model would lose imaginary parts."""
    for name, parameter in get_mixer(subject.name)(subject.d_model, **subject.options).named_parameters():
        if parameter.dtype != torch.float32:
            yield Breach(f"the parameter {name}", f"{plain(parameter.dtype)}, not float32")


def randomness_has_a_generator_of_its_own(subject: Subject) -> Iterator[Breach]:
    """In training nothing is drawn from the global generator, which runs share."""
    mixer, x_BLD = subject.build(torch.float32).train(), subject.inputs(dtype=torch.float32)
    for module in mixer.modules():
        if isinstance(module, Dropout):
            module.generator = torch.Generator()
    before = torch.get_rng_state()
    mixer(x_BLD)
    if not torch.equal(torch.get_rng_state(), before):
        yield Breach("forward in training", "draws from, or seeds, torch's global generator")


@contextmanager
def _without_its_log() -> Iterator[None]:
    """What PyTorch prints of a call that fails on such tensors is in the exception."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@dataclass(frozen=True)
class Law:
    """A promise, the function that looks for breaches, and what to do about them.

    `by_raising`: what it looks for shows in what the mixer raises. `first`: where several are broken, others may follow
    from this one; of several such ones from the first in LAWS.
    """

    look: Callable[[Subject], Iterator[Breach]]
    advice: str
    by_raising: bool = False
    first: bool = False

    @property
    def name(self) -> str:
        """`causal`, `state keeps its size`."""
        return self.look.__name__.replace("_", " ")


STATED = Law(
    state_has_the_stated_size, "Correct init_state or the docstring's formula: d d_model, L max_length, e bytes."
)
LAWS = (
    Law(output_has_shape_and_dtype, "Give back what came in: cast sums kept in a wider dtype with .to(x.dtype)."),
    Law(
        inputs_are_left_as_they_are,
        "No x.mul_(), x += or x[...] =, and none of .data: work on a new tensor.",
        first=True,
    ),
    Law(
        initialise_can_be_called_and_gives_numbers,
        "Fill in initialise(self, layers, init) what the constructor leaves empty.",
        first=True,
    ),
    Law(
        answers_are_the_same_again,
        "Draw only where self.training; keep nothing of a call for the next one.",
        first=True,
    ),
    Law(
        numbers_are_finite,
        "Look for exp() of what a sum over time makes large: subtract first, then exp; mask before exp, too.",
        first=True,
    ),
    Law(sequences_are_independent, "Look for a sum, norm or reshape that mixes dimension 0.", first=True),
    Law(
        causal,
        "Look for a mean, norm or convolution over the whole length or a chunk, and for masks that are off by one.",
        first=True,
    ),
    Law(
        training_is_causal_and_each_sequence_alone,
        "Look for `if self.training`, and for norms over the batch or the length, such as BatchNorm; each reads what a "
        "step will not have.",
    ),
    Law(
        memory_is_in_the_state,
        "Keep nothing on the module from one step to the next: all that a step reads of earlier ones is in the state.",
        first=True,
    ),
    Law(
        forward_prefill_and_steps_agree,
        "Compare forward and step at the first position named; mind the first token, and the first of a chunk.",
    ),
    Law(
        packed_examples_are_each_alone,
        "Where the classmethod packs(options, *, asked) is true, there is a forward(x_1TD, packing): mix within "
        "examples, which begin at packing.starts_B; packing.spread makes a batch of them, packing.gather a row again.",
        by_raising=True,
    ),
    Law(asked_outputs_are_rows_of_forward, "Only what a token does for itself may be left out: queries, gates, norms."),
    Law(prefill_then_steps, "prefill must leave the state as its last token left it, with room for max_length tokens."),
    Law(
        prefill_leaves_the_state_of_steps, "prefill should fill every tensor of init_state, in shape, dtype and value."
    ),
    Law(
        state_keeps_its_size, "Allocate all room in init_state(max_length) and write into it; never torch.cat a state."
    ),
    Law(ages_decode_together, "Keep positions in the state, one for each sequence, not in the module or a Python int."),
    Law(
        gradients_are_right,
        "Look for .detach(), .data, in-place changes and hand-written backwards; a straight-through one breaks it too.",
    ),
    STATED,
    Law(bfloat16_is_close, "Accumulate sums over time in float32 (basedbench.mixers.base.accumulator_dtype)."),
    Law(
        nothing_is_read_back,
        "No .item(), no branch on a tensor's value, no tensor from host data in forward or step.",
        by_raising=True,
    ),
    Law(parameters_can_be_trained, PARAMETERS),
    Law(randomness_has_a_generator_of_its_own, "Take basedbench.models.Dropout for nn.Dropout, and seed nothing."),
)


def broken(law: Law, subject: Subject) -> list[Breach]:
    """All breaches of a law; what the mixer raises is one of them."""
    found = []
    try:
        for breach in law.look(subject):
            found.append(breach)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = printable(said_by(error).strip().split("\n")[0])
        raised = f"raises {type(error).__name__}: {text}".removesuffix(": ")
        raised += "".join(f" ({printable(str(note))})" for note in getattr(error, "__notes__", ()))
        found.append(Breach(place_of(error) or "the mixer", raised, raised=True))
    return found
