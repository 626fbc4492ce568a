"""What fits a device's memory, known before any work: weights and states are counted by formula, nothing is built.

A model whose weights and states alone exceed what is free has no time to be looked for. On a CPU that goes for all that
it needs: where a GPU says that its memory is at an end, a computer begins to swap, or kills. Of a group whose models do
not all fit beside each other, those that do are timed together, then the others, in as few parts as come of filling
each in turn. The estimate need not be exact: what runs out of memory beside others all the same is tried again alone.
"""

from collections.abc import Sequence

from basedbench.config.models import ModelCase
from basedbench.config.throughput import AnyCase
from basedbench.errors import UserError

CONTEXT_BYTES = 600 * 2**20  # of every worker: the device's context, libraries, kernels
PROCESS_BYTES = 150 * 2**20  # of one on a CPU, beside what all of them share
BEYOND_STATES = 1.05  # what a step needs besides, in proportion
# What a prompt's graph holds for its call, in numbers of the weights' dtype for each token and each of the stream's: 12
# to 16 were measured, of 360M and 1.3B parameters, Transformers, BASED and Mambas.
BEYOND_PROMPTS = 16
# Of softmax attention written out, for every query and key of a layer's heads: in float32 whatever the dtype, two and a
# half numbers were measured.
SCORE_BYTES = 10


def does_not_fit(case: AnyCase, free_bytes: int) -> str | None:
    """Why a device with so much free memory cannot hold a case, or None."""
    try:
        needed = sum(_held(case))
        if case.device == "cpu":
            needed = max(needed, _alone(case))
    except UserError as error:
        return str(error)
    if needed <= free_bytes:
        return None
    return f"needs {_gib(needed)} of memory, {_gib(free_bytes)} are free"


def side_by_side(cases: Sequence[AnyCase], free_bytes: int, processes: int) -> list[list[AnyCase]]:
    """The cases in parts that a device holds at once beside so many processes, in their order."""
    each = PROCESS_BYTES if cases and cases[0].device == "cpu" else CONTEXT_BYTES
    parts: list[list[AnyCase]] = []
    left: list[float] = []
    for case in cases:
        weights, states = _held(case)
        own = BEYOND_STATES * states + _activations(case)
        beside = weights + max(_check(case, weights), own)  # the check comes before the state
        place = next((index for index, free in enumerate(left) if not weights or beside <= free), len(parts))
        if place == len(parts):
            parts.append([])
            left.append(free_bytes - each * processes)
        parts[place].append(case)
        left[place] -= weights + own
    return parts


def _alone(case: AnyCase) -> int:
    """What a case needs with the device to itself."""
    weights, states = _held(case)
    return weights + max(_check(case, weights), states + _activations(case))


def _held(case: AnyCase) -> tuple[int, int]:
    """(weights, states of all sequences) in bytes; operators, whose inputs are small, count as nothing."""
    if not isinstance(case, ModelCase):
        return 0, 0
    from basedbench.contenders.language_costs import held_bytes

    return held_bytes(case)


def _activations(case: AnyCase) -> int:
    """What reading a prompt needs besides; a step of one token needs next to nothing."""
    if not isinstance(case, ModelCase) or case.mode != "prefill":
        return 0
    from basedbench.contenders.language import config_of

    config = config_of(case)
    width = BEYOND_PROMPTS * config.d_model + (config.vocab_size if case.logits == "all" else 0)
    written_out = case.contender == "sdpa-math" and "attention" in config.layers
    scores = SCORE_BYTES * config.heads * case.length if written_out else 0
    return case.tokens * (width * (4 if case.dtype == "fp32" else 2) + scores)


def _check(case: AnyCase, weights: int) -> int:
    """The copy in float32 that a model is checked against, if its weights have 16 bits."""
    return 2 * weights if case.dtype != "fp32" else weights


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
