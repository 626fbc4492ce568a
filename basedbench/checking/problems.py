"""What is checked: every operator over dtypes, lengths, widths and options, each combination one problem.

The main width of an operator is checked at every length; its other widths and options at one awkward length, for what
they change (tiles, masks, extra terms) does not depend on the length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Mode = Literal["fwd", "gradients", "step"]
Sizes = dict[str, int]

# One token, a fraction of a chunk, many chunks and a ragged end, whole tiles only, several segments and a token over.
LENGTHS = (1, 17, 1000, 2048, 4097)
STEP_LENGTHS = (1, 17, 1000)
AWKWARD = 1000
DTYPES = ("fp32", "fp16", "bf16")
BATCH = 2


@dataclass(frozen=True)
class Problem:
    """One thing to check. For a step, `length` is the number of tokens before it."""

    operator: str
    mode: Mode
    dtype: str
    length: int
    sizes: tuple[tuple[str, int], ...]
    options: tuple[str, ...] = ()
    contender: str | None = None  # a plugin's; otherwise what basedbench.kernels takes

    @property
    def shape(self) -> str:
        """`K16 V64, initial state`: all but the length."""
        widths = " ".join(f"{name}{value}" for name, value in self.sizes)
        return ", ".join([widths, *self.options]) if self.options else widths

    @property
    def label(self) -> str:
        """What `--filter` matches: `taylor_attention fwd bf16 L4097 H2 K16 V64`."""
        name = f"{self.operator}/{self.contender}" if self.contender else self.operator
        return f"{name} {self.mode} {self.dtype} L{self.length} {self.shape}"


@dataclass(frozen=True)
class Coverage:
    """The sizes and options of an operator that are checked, the main ones first; `wide` sizes only on a GPU."""

    sizes: tuple[Sizes, ...]
    options: tuple[tuple[str, ...], ...] = ((),)
    modes: tuple[Mode, ...] = ("fwd", "gradients", "step")
    step_options: tuple[tuple[str, ...], ...] = ((),)
    wide: tuple[Sizes, ...] = ()


_HEADS = (
    {"H": 2, "K": 16, "V": 64},
    {"H": 2, "K": 8, "V": 64},
    {"H": 2, "K": 24, "V": 48},
    {"H": 2, "K": 32, "V": 128},
    {"H": 2, "K": 16, "V": 112},
)
_STATE = ((), ("initial state",), ("initial state", "last state"))
_MAMBA = ("skip", "gate", "bias", "softplus")

_DELTA = Coverage(
    (
        {"H": 2, "K": 64, "V": 64},
        {"H": 2, "K": 32, "V": 64},
        {"H": 2, "K": 48, "V": 80},
        {"H": 1, "K": 128, "V": 256},
    ),
    (
        ("channel decay",),
        (),
        ("head decay",),
        ("channel decay", "initial state"),
        ("channel decay", "initial state", "last state"),
    ),
    step_options=(("channel decay",), ("head decay",), ()),
    wide=({"H": 16, "K": 128, "V": 128},),
)
COVERAGE: dict[str, Coverage] = {
    "taylor_attention": Coverage(_HEADS, _STATE, wide=({"H": 128, "K": 16, "V": 64},)),
    "linear_attention": Coverage(
        ({"H": 2, "K": 64, "V": 64}, {"H": 2, "K": 16, "V": 48}, {"H": 1, "K": 256, "V": 64}),
        _STATE,
        wide=({"H": 1, "K": 192, "V": 512}, {"H": 264, "K": 16, "V": 64}),
    ),
    "retention": Coverage(
        ({"H": 2, "K": 64, "V": 128}, {"H": 2, "K": 32, "V": 64}, {"H": 1, "K": 128, "V": 256}),
        _STATE,
        modes=("fwd", "gradients"),
    ),
    "gated_linear_attention": Coverage(
        ({"H": 2, "K": 64, "V": 64}, {"H": 2, "K": 16, "V": 32}),
        (*_STATE, ("strong decays",)),
        wide=({"H": 2, "K": 48, "V": 112},),
    ),
    "sliding_window": Coverage(
        (
            {"H": 2, "K": 64, "V": 64, "W": 64},
            {"H": 2, "K": 64, "V": 64, "W": 16},
            {"H": 2, "K": 48, "V": 48, "W": 100},
            {"H": 2, "K": 128, "V": 128, "W": 128},
            {"H": 2, "K": 112, "V": 112, "W": 128},
            {"H": 2, "K": 70, "V": 70, "W": 64},
        ),
        wide=({"H": 128, "K": 64, "V": 64, "W": 128},),
    ),
    "taylor_attention_asked": Coverage(
        (
            {"H": 2, "F": 16, "V": 64, "A": 16},
            {"H": 1, "F": 24, "V": 128, "A": 64},
            {"H": 1, "F": 16, "V": 128, "A": 32},
            {"H": 2, "F": 8, "V": 48, "A": 4},
        ),
        modes=("fwd", "gradients"),
    ),
    "sliding_window_asked": Coverage(
        (
            {"H": 1, "F": 64, "V": 64, "W": 64, "A": 16},
            {"H": 1, "F": 128, "V": 128, "W": 64, "A": 64},
            {"H": 1, "F": 128, "V": 128, "W": 16, "A": 32},
            {"H": 2, "F": 48, "V": 48, "W": 100, "A": 4},
        ),
        modes=("fwd", "gradients"),
    ),
    "selective_scan": Coverage(
        ({"D": 64, "N": 16}, {"D": 40, "N": 8}),
        (_MAMBA, (), (*_MAMBA, "initial state"), (*_MAMBA, "initial state", "last state")),
        step_options=(_MAMBA, ()),
        wide=({"D": 2048, "N": 16},),
    ),
    "ssd": Coverage(
        ({"H": 4, "P": 64, "N": 128, "G": 1}, {"H": 4, "P": 32, "N": 16, "G": 2}, {"H": 2, "P": 48, "N": 64, "G": 1}),
        (
            ("skip", "bias", "softplus"),
            (),
            _MAMBA,
            (*_MAMBA, "initial state"),
            (*_MAMBA, "initial state", "last state"),
        ),
        step_options=(("skip", "bias", "softplus"), _MAMBA),
        wide=({"H": 128, "P": 64, "N": 128, "G": 1},),
    ),
    "delta_rule": _DELTA,
    "shared_delta_rule": Coverage(_DELTA.sizes, (("channel decay",), ("head decay",)), modes=("fwd", "gradients")),
    "layer_delta_rule": _DELTA,
    "wkv4": Coverage(({"D": 64}, {"D": 40}), (*_STATE, ("large keys",))),
    "delta_inputs": Coverage(
        ({"H": 2, "K": 64}, {"H": 3, "K": 40}, {"H": 2, "K": 128}),
        (("channel decay",), (), ("head decay",)),
        modes=("fwd", "gradients"),
    ),
    "rwkv7_inputs": Coverage(({"H": 2, "K": 64}, {"H": 3, "K": 40}), modes=("fwd", "gradients")),
    "token_shift": Coverage(({"D": 64, "M": 6}, {"D": 200, "M": 3}), modes=("fwd", "gradients")),
    "head_norm": Coverage(
        ({"H": 2, "V": 64}, {"H": 3, "V": 80}, {"H": 2, "V": 256}),
        (("gate",), (), ("gate", "bonus")),
        modes=("fwd", "gradients"),
    ),
    "short_conv": Coverage(
        ({"D": 64, "W": 4}, {"D": 40, "W": 3}, {"D": 64, "W": 2}),
        (("bias", "silu"), (), ("bias", "silu", "initial state", "last state")),
        step_options=(("bias", "silu"), ()),
    ),
    "selective_ssm": Coverage(
        ({"D": 64, "N": 16, "R": 2}, {"D": 40, "N": 8, "R": 3}), (("bias",), ()), modes=("fwd", "gradients")
    ),
    "selective_ssm_asked": Coverage(
        ({"D": 64, "N": 16, "R": 2, "A": 16}, {"D": 40, "N": 8, "R": 3, "A": 5}),
        (("bias",), ()),
        modes=("fwd", "gradients"),
    ),
    "split_ssd_asked": Coverage(
        (
            {"H": 4, "P": 64, "N": 16, "G": 1, "A": 16},
            {"H": 4, "P": 64, "N": 24, "G": 1, "A": 32},
            {"H": 4, "P": 32, "N": 8, "G": 2, "A": 5},
        ),
        modes=("fwd", "gradients"),
    ),
    "split_conv": Coverage(({"D": 64, "W": 4}, {"D": 40, "W": 3}), (("bias", "silu"), ()), modes=("fwd", "gradients")),
    "conv_gate": Coverage(({"D": 64, "W": 3}, {"D": 40, "W": 4}), ((), ("initial state", "last state"))),
    "base_conv": Coverage(({"D": 64, "W": 3}, {"D": 40, "W": 4}), modes=("fwd", "gradients")),
    "gated_conv": Coverage(({"D": 64, "W": 3}, {"D": 40, "W": 4}), modes=("fwd", "gradients")),
    "plane_conv": Coverage(({"D": 64, "W": 3}, {"D": 40, "W": 4}), modes=("fwd", "gradients")),
    "shift_filter": Coverage(({"D": 64, "N": 16}, {"D": 40, "N": 64}), modes=("fwd", "gradients")),
    "long_conv": Coverage(({"D": 64, "G": 64, "N": 4097}, {"D": 48, "G": 12, "N": 30}), modes=("fwd", "gradients")),
    "gated_long_conv": Coverage(
        ({"H": 64, "R": 1, "N": 4097}, {"H": 32, "R": 2, "N": 4097}, {"H": 8, "R": 3, "N": 4097}),
        (("skip",), ("skip", "shift")),
        modes=("fwd", "gradients"),
    ),
    "implicit_filter": Coverage(({"E": 3, "U": 64, "D": 64}, {"E": 5, "U": 24, "D": 100}), modes=("fwd", "gradients")),
    "diagonal_filter": Coverage(({"H": 32, "M": 8}, {"H": 5, "M": 12}), modes=("fwd", "gradients")),
    "linear_cross_entropy": Coverage(
        ({"D": 64, "V": 1000}, {"D": 128, "V": 8192}, {"D": 256, "V": 1000}, {"D": 768, "V": 5000}),
        modes=("fwd", "gradients"),
        # Half precision has other kernels from 4,097 positions on.
        wide=({"B": 5, "D": 64, "V": 8192}, {"B": 5, "D": 128, "V": 8192}, {"B": 5, "D": 256, "V": 1000}),
    ),
    "add_layer_norm": Coverage(
        ({"D": 64}, {"D": 200}),
        (("residual", "bias"), ("residual", "bias", "dropout"), (), ("residual", "root mean square")),
        modes=("fwd", "gradients"),
    ),
    "embedding": Coverage(({"D": 64, "V": 1000}, {"D": 128, "V": 40000}), modes=("fwd", "gradients")),
    "linear": Coverage(({"D": 64, "E": 192}, {"D": 40, "E": 72}), modes=("fwd", "gradients")),
    "block_boundary": Coverage(
        ({"D": 64}, {"D": 200}),
        ((), ("two norms",), ("two norms", "some positions"), ("root mean square",)),
        modes=("fwd", "gradients"),
    ),
    "row_argmax": Coverage(({"V": 1000}, {"V": 50277}), modes=("fwd",)),
    "swiglu": Coverage(({"I": 64}, {"I": 200}), modes=("fwd", "gradients")),
    "rotary": Coverage(
        ({"H": 4, "G": 4, "K": 64, "R": 64}, {"H": 4, "G": 2, "K": 70, "R": 35}, {"H": 3, "G": 3, "K": 112, "R": 112}),
        modes=("fwd", "gradients"),
    ),
    "attention_decode": Coverage(
        (
            {"H": 4, "G": 4, "K": 64, "V": 64},
            {"H": 2, "G": 2, "K": 70, "V": 70},
            {"H": 2, "G": 2, "K": 112, "V": 112},
            {"H": 4, "G": 2, "K": 128, "V": 128},
            {"H": 2, "G": 2, "K": 48, "V": 24},
        ),
        ((), ("angles",)),
        modes=("fwd",),
        wide=({"H": 512, "G": 512, "K": 16, "V": 16},),
    ),
    "cache_append": Coverage(
        ({"H": 4, "G": 4, "K": 64, "V": 64}, {"H": 2, "G": 2, "K": 70, "V": 70}, {"H": 20, "G": 5, "K": 48, "V": 24}),
        (("angles",), ()),
        modes=("fwd",),
    ),
    "adamw_step": Coverage(({"E": 16},), modes=("fwd",)),
    "take_batch": Coverage(({"K": 7},), modes=("fwd",)),
}


def problems(device: str) -> list[Problem]:
    """Everything on a kind of device ("cpu" or "cuda").

    On a CPU, where all dtypes share one implementation, 16 bits are checked at one length of the main width.
    """
    found = [one for operator in COVERAGE for one in problems_of(operator)]
    return found if device == "cuda" else [one for one in found if _for_a_cpu(one)]


def problems_of(operator: str) -> Iterator[Problem]:
    """Every problem of an operator."""
    coverage = COVERAGE[operator]
    for mode in coverage.modes:
        lengths = STEP_LENGTHS if mode == "step" else LENGTHS
        options = coverage.step_options if mode == "step" else coverage.options
        for sizes, given, length in _combinations((*coverage.sizes, *coverage.wide), options, lengths):
            for dtype in DTYPES:
                yield Problem(operator, mode, dtype, length, tuple(sizes.items()), given)


def _combinations(
    sizes: tuple[Sizes, ...], options: tuple[tuple[str, ...], ...], lengths: tuple[int, ...]
) -> Iterator[tuple[Sizes, tuple[str, ...], int]]:
    yield from ((sizes[0], options[0], length) for length in lengths)
    yield from ((other, options[0], AWKWARD) for other in sizes[1:])
    yield from ((sizes[0], other, AWKWARD) for other in options[1:])


def _for_a_cpu(problem: Problem) -> bool:
    coverage = COVERAGE[problem.operator]
    if dict(problem.sizes) in coverage.wide:
        return False
    options = coverage.step_options if problem.mode == "step" else coverage.options
    main = problem.sizes == tuple(coverage.sizes[0].items()) and problem.options == options[0]
    return problem.dtype == "fp32" or (main and problem.length == AWKWARD)
