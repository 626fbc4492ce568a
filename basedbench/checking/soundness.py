"""Laws about what the others take for granted: a start that can be trained, numbers, the same answer twice.

And those that show only where a mixer is in training, or decodes two texts by turns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from basedbench.checking.subject import (
    BATCH,
    CHANGED,
    FAR,
    LENGTH,
    Breach,
    Subject,
    by_turns,
    changed_before,
    differences,
    noted,
    steps,
)
from basedbench.mixers import get_mixer
from basedbench.mixers.base import Init


def initialise_can_be_called_and_gives_numbers(subject: Subject) -> Iterator[Breach]:
    """Called as the trainer calls it, it leaves every parameter with finite numbers."""
    for init in get_args(Init):
        torch.manual_seed(0)
        with _empty_is_nan():
            mixer = get_mixer(subject.name)(subject.d_model, **subject.options)
        replace(subject, init=init).initialise(mixer)
        for name, parameter in mixer.named_parameters():
            if wrong := int((~parameter.isfinite()).sum()):
                told = f"{wrong:,} of {parameter.numel():,} numbers are not finite, or nothing has set them"
                yield Breach(f"the parameter {name} after initialise({subject.layers}, {init!r})", told)


def answers_are_the_same_again(subject: Subject) -> Iterator[Breach]:
    """In evaluation the same input has the same outputs, in forward and in steps: nothing is drawn."""
    mixer, x_BLD = subject.build(), subject.inputs()
    with torch.inference_mode():
        forwards = [mixer(x_BLD.clone()) for _ in range(2)]
        stepped = [steps(mixer, x_BLD.clone(), mixer.init_state(BATCH, LENGTH, x_BLD.dtype))[0] for _ in range(2)]
    yield from differences("forward of the same input again", forwards[1], forwards[0])
    yield from differences("steps of the same input again", stepped[1], stepped[0])


def numbers_are_finite(subject: Subject) -> Iterator[Breach]:
    """In float32, in which runs train, all outputs of a long sequence are, of forward and steps, and all gradients."""
    mixer, far, long = subject.build(torch.float32), subject.longest(FAR), subject.longest()
    x_1LD = subject.inputs(1, far, torch.float32)
    with noted(far):
        leaf_1LD = x_1LD.clone().requires_grad_()
        y_1LD = mixer(leaf_1LD + 0)  # a leaf could not be written into, which another law is about
    breach = not_finite(f"forward of {far} tokens in float32", y_1LD.detach())
    if breach:
        yield breach
    elif y_1LD.requires_grad:
        y_1LD.square().sum().backward()
        named = {"the input": leaf_1LD, **dict(mixer.named_parameters())}
        for name, leaf in named.items():
            if leaf.grad is not None and not leaf.grad.isfinite().all():
                yield Breach(f"the gradient of {name} over {far} tokens in float32", "not finite")
    with torch.inference_mode(), noted(long):
        y_1LD, _ = steps(mixer, x_1LD[:, :long].clone(), mixer.init_state(1, long, torch.float32))
    if breach := not_finite(f"{long} steps in float32", y_1LD):
        yield breach


def training_is_causal_and_each_sequence_alone(subject: Subject) -> Iterator[Breach]:
    """In training, too, no output depends on later inputs, or on other sequences; what is drawn is the same each time.

    Inputs have the same shape each time, so that masks of dropout are the same, too.
    """

    def trained(x_BLD: Tensor) -> Tensor:
        mixer = subject.build().train()  # anew, for it may count its calls, or average over them
        torch.manual_seed(1)
        y_BLD: Tensor = mixer(x_BLD.clone())
        return y_BLD.detach()

    x_BLD = subject.inputs()
    right_BLD = trained(x_BLD)
    again = list(differences("forward in training, of the same input and torch.manual_seed", trained(x_BLD), right_BLD))
    if again:
        yield from again
        return
    later_BLD, others_BLD = x_BLD.clone(), x_BLD.clone()
    later_BLD[:, CHANGED:] += 10
    others_BLD[::2] = 3 - 2 * x_BLD[::2]  # all but the one in the middle, which could see either neighbour
    if found := changed_before(trained(later_BLD) - right_BLD, CHANGED):
        amount = f"changes by {found[1]:.2g} when the inputs from position {CHANGED} on change"
        yield Breach(f"the output at position {found[0]} in training", amount)
    if found := changed_before((trained(others_BLD) - right_BLD)[1:2], LENGTH):
        amount = f"changes by {found[1]:.2g} when the other sequences of the batch change"
        yield Breach(f"a sequence in training, first at position {found[0]}", amount)


def memory_is_in_the_state(subject: Subject) -> Iterator[Breach]:
    """Steps need nothing but their state: another text's steps between them change nothing."""
    mixer, x_BLD = subject.build(), subject.inputs()
    with torch.inference_mode():
        alone_BLD, _ = steps(mixer, x_BLD, mixer.init_state(BATCH, LENGTH, x_BLD.dtype))
        turned_BLD = torch.stack([y_BD for y_BD, _ in by_turns(mixer, x_BLD)], 1)
    yield from differences("steps of two texts by turns", turned_BLD, alone_BLD)


def not_finite(what: str, y_BLD: Tensor) -> Breach | None:
    """How many tokens' outputs (B, L, D) are not finite, and which is the first."""
    wrong_L = ~y_BLD.isfinite().flatten(2).all(2).all(0)
    if not wrong_L.any():
        return None
    told = f"{int(wrong_L.sum()):,} of {len(wrong_L):,} outputs are not finite"
    return Breach(f"{what}, first at position {int(wrong_L.nonzero()[0])}", told)


@contextmanager
def _empty_is_nan() -> Iterator[None]:
    """What torch.empty makes is NaN, not what was in memory by chance."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
