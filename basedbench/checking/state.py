"""Whether a mixer of the user's own answers from the state it states: looked at before a sweep trains it.

The project's own mixers are held to more than this by the tests. In float32, as runs train, with room for its rounding:
what a shortcut gains is far above that. Over the longest test length, but at most LONGEST tokens, and STEPPED steps.
"""

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from basedbench.checking.soundness import not_finite
from basedbench.checking.subject import Subject, by_turns, changes, layout
from basedbench.errors import printable, said_by, sentence
from basedbench.mixers import Mixer, get_mixer
from basedbench.models.recall import LayerSpec
from basedbench.plugins import load_plugins
from basedbench.sources import source_of
from basedbench.timing import waking
from basedbench.timing.failures import shorten
from basedbench.timing.worker import Failure, Worker
from basedbench.training.cases import RecallCase

ROUNDING = 1e-3  # of the largest output
BATCH, LONGEST, STEPPED = 2, 2048, 1024  # the tokens that forward reads at most, and how many steps
SHORT = 256  # texts of so many tokens are not looked at without their second half, too
LIMIT_S, LEAST_S = 60.0, 1.0  # for one mixer
UNSEEN = "its state could not be looked at"


class Attempt:
    """One mixer inside the process."""

    def __init__(self, subject: Subject, length: int, device: str) -> None:
        self.subject, self.length, self.device = subject, length, device

    def prepare(self) -> str | None:
        """What is wrong with its state."""
        return state_doubt(self.subject, self.length, self.device)


def set_up(device: str, plugins: Sequence[str]) -> Callable[[Subject, int], Attempt]:
    """What the process does first."""
    torch.set_num_threads(1)
    if device != "cpu":
        waking.open_device(device)  # kernels of a mixer's own go where torch's current device is
    load_plugins(plugins)
    return partial(Attempt, device=device)


def with_doubts(
    cases: Sequence[RecallCase],
    plugins: Sequence[str],
    given: Sequence[str],
    device: str = "cpu",
    limit_s: float = LIMIT_S,
    all_s: float = math.inf,
    begins: Callable[[Subject], object] = lambda subject: None,
) -> tuple[list[RecallCase], list[str]]:
    """The cases with what is wrong with the states of the user's own mixers, and a sentence for each such mixer.

    They are looked at in a process apart: one that ends it or never answers has no state that could be believed. That
    is done on a CPU, and of a mixer that does not run there on the `device` that trains it. `given` are the plugins as
    the command has them. None is looked at for longer than `limit_s`, nor all of them than about `all_s`; one that did
    not answer is not asked again at another width. `begins` is told of each that is looked at.
    """
    ends = time.monotonic() + all_s
    found: dict[str, str | None] = {}
    told: dict[str, str] = {}
    silent: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    try:
        for case in cases:
            for layer in case.layers:
                key = _key(layer, case)
                if key in found or source_of(get_mixer(layer.mixer)) is None:
                    continue
                subject = Subject(layer.mixer, case.d_model, dict(layer.options), len(case.layers), case.train.init)
                length = min(LONGEST, case.longest)
                answer = silent.get(layer.mixer)
                if answer is None:
                    begins(subject)
                    most_s = min(limit_s, max(LEAST_S, ends - time.monotonic()))
                    answer, hangs = _look(workers, device, plugins, subject, length, most_s)
                    if answer and hangs:
                        silent[layer.mixer] = answer
                found[key] = answer and f"{layer.mixer}: {answer}"
                if answer and layer.mixer not in told:
                    told[layer.mixer] = f"{found[key]}{_consequence(answer, subject, given)}"
    finally:
        for worker in workers.values():
            worker.stop()
    return [_doubted(case, found) for case in cases], list(told.values())


def _look(
    workers: dict[str, Worker], device: str, plugins: Sequence[str], subject: Subject, length: int, limit_s: float
) -> tuple[str | None, bool]:
    """What a CPU says of a mixer, or the device where it does not run there; whether it is that nobody answered."""
    answer, hangs = None, False
    for place in dict.fromkeys(("cpu", device)):
        answer, hangs = _answer(workers, place, plugins, subject, length, limit_s)
        if answer is None or not answer.startswith(UNSEEN):
            break
    return answer, hangs


def _answer(
    workers: dict[str, Worker], device: str, plugins: Sequence[str], subject: Subject, length: int, limit_s: float
) -> tuple[str | None, bool]:
    """What the process of a device says; one that ended is begun anew for the next mixer."""
    if device not in workers:
        workers[device] = Worker(device, plugins, set_up)
    answer: str | Failure | None = workers[device].ask("prepare", subject, length, limit_s=limit_s)
    if not isinstance(answer, Failure):
        return answer, False
    workers.pop(device).stop()
    return f"{UNSEEN} ({shorten(answer.reason)})", answer.status == "timeout"


def _key(layer: LayerSpec, case: RecallCase) -> str:
    begun = len(case.layers), case.train.init
    return f"{layer.mixer} {case.d_model} {sorted(layer.options.items())} {begun} {case.longest}"


def _doubted(case: RecallCase, found: Mapping[str, str | None]) -> RecallCase:
    doubts = dict.fromkeys(doubt for layer in case.layers if (doubt := found.get(_key(layer, case))))
    return replace(case, state_doubt="; ".join(doubts)) if doubts else case


def _consequence(doubt: str, subject: Subject, plugins: Sequence[str]) -> str:
    """The rest of the sentence, with the command that tells more."""
    given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in subject.options.items()}
    options = "".join(f" --{name.replace('_', '-')} {shlex.quote(value)}" for name, value in given.items())
    files = "".join(f" --plugin {shlex.quote(file)}" for file in plugins)
    command = f"basedbench check mixer {subject.name}{files} --d-model {subject.d_model}{options}"
    if doubt.startswith(UNSEEN):
        return f"; its rows have no state bytes, for nobody knows whether its answers need more. {command} says more."
    return f", so its state bytes are not those that its answers need; its rows have none. {command} says more."


def state_doubt(subject: Subject, length: int, device: str = "cpu") -> str | None:
    """Why the bytes of init_state are not what the mixer's answers need; None if nothing speaks against them.

    Where forward itself fails, as its runs will, or because it needs another device, that is why: nothing speaks for
    them.
    """
    x_BLD = subject.inputs(BATCH, length, torch.float32).to(device)
    try:
        mixer = subject.build(torch.float32).to(device)
        with torch.no_grad():
            y_BLD = mixer(x_BLD.clone())
        unset = [name for name, parameter in mixer.named_parameters() if not parameter.isfinite().all()]
        found = not_finite(f"forward of {length} tokens", y_BLD)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = "a CPU" if device == "cpu" else device
        return f"{UNSEEN}: on {place} it raises {shorten(sentence(error))}"
    if unset:
        return f"{UNSEEN}: after initialise not all numbers of its parameter {unset[0]} are finite"
    if found:
        return f"{UNSEEN}: {found}"
    try:
        with torch.no_grad():
            return _leak(mixer, x_BLD, y_BLD) or _steps_differ(mixer, x_BLD, y_BLD)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = printable(said_by(error).strip().split("\n")[0])
        return shorten(f"decoding raises {type(error).__name__}: {text}".removesuffix(": "))


def _leak(mixer: Mixer, x_BLD: Tensor, y_BLD: Tensor) -> str | None:
    """Answers that depend on later tokens: on what they are, or on whether they are there."""
    length = x_BLD.shape[1]
    changed = 3 * length // 5 | 1  # amid a chunk
    others_BLD = torch.cat((x_BLD[:, :changed], x_BLD[:, : length - changed]), 1)
    looks = [("later tokens do", others_BLD, changed)]
    if length > SHORT:
        part = length // 2
        looks.append((f"the tokens behind the first {part} of {length} are not there", x_BLD[:, :part].clone(), part))
    for when, given_BLD, same in looks:
        early_BLD = y_BLD[:, :same]
        difference = _distance(mixer(given_BLD)[:, :same], early_BLD)
        if _more(difference, early_BLD):
            return f"its outputs change by {difference:.2g} when {when}"
    return None


def _steps_differ(mixer: Mixer, x_BLD: Tensor, y_BLD: Tensor) -> str | None:
    """Steps that need something besides their state: two texts take turns, so that nothing can be kept elsewhere."""
    x_BLD, y_BLD = x_BLD[:, :STEPPED], y_BLD[:, :STEPPED]
    batch, length, _ = x_BLD.shape
    before, outputs = layout(mixer.init_state(batch, length, x_BLD.dtype, x_BLD.device)), []
    for position, (y_BD, state) in enumerate(by_turns(mixer, x_BLD)):
        for breach in changes(f"is not init_state's after step {position + 1}", before, layout(state)):
            return f"{breach.where} ({breach.amount})"
        outputs.append(y_BD)
    stepped_BLD = torch.stack(outputs, 1)
    if stepped_BLD.shape != y_BLD.shape:
        return f"stepping gives the shape {tuple(stepped_BLD.shape)} and the forward {tuple(y_BLD.shape)}"
    if found := not_finite(f"{length} steps", stepped_BLD):
        return str(found)
    difference = _distance(stepped_BLD, y_BLD)
    return f"stepping differs from the forward by {difference:.2g}" if _more(difference, y_BLD) else None


def _distance(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max())


def _more(difference: float, right: Tensor) -> bool:
    """Than rounding; what is no number is."""
    return not difference <= ROUNDING * float(right.abs().max())
