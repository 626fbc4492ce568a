"""A rough guess at a run's time, so that nobody starts a day's work by mistake.

A step takes a fixed time, a time per token (growing with d_model) and a time per question, whose answer is looked for
in the whole vocabulary. On a GPU the three are fitted to steps of based (d 64, f 16; vocabulary 8,192) on an H200, as
docs/log/trainer.md has them: fp32 one run alone, bf16 eight runs side by side. On a CPU they come from the rows of the
suite quick in results/reference/cpu. Other mixers are told by a factor: on a GPU from the bf16 rows of figure2 in
results/reference/h100, beside based's, and from steps of the delta rule's family timed there. For those in no such row
it is a guess, and shown as one.
"""

from dataclasses import dataclass

from basedbench.training.cases import RecallCase
from basedbench.training.data import evaluation_splits


@dataclass(frozen=True)
class StepCost:
    """Of one step, forward, backward and optimizer, at d_model 64 and a vocabulary of 8,192."""

    fixed_ms: float
    token_ns: float
    question_ns: float


CPU = StepCost(3.0, 2000.0, 0.0)
GPU = {"fp32": StepCost(0.147, 10.6, 48.8), "bf16": StepCost(0.077, 3.65, 13.3)}  # tf32: as fp32
CPU_FACTORS = {"mamba": 6.0, "mamba2": 3.0, "gla": 3.0, "retnet": 3.0, "rwkv4": 3.0}
GPU_FACTORS = {
    "attention": 1.0,
    "based": 1.0,
    "linear_attention": 1.0,
    "sliding_window": 1.0,
    "retnet": 1.2,
    "delta_net": 1.2,
    "gated_delta_net": 1.6,
    "kda": 1.6,
    "h3": 1.5,
    "hyena": 1.7,
    "mamba2": 1.7,
    "rwkv7": 1.9,
    "mamba": 2.3,
}
CPU_DEFAULT_FACTOR, GPU_DEFAULT_FACTOR = 1.0, 3.0
# Mixers that have been timed so; all others are guessed from their kernels, their references, or from nothing.
TIMED = {
    "cpu": {"attention", "based", "linear_attention", "sliding_window", "mamba", "mamba2"},
    "gpu": set(GPU_FACTORS) - {"linear_attention", "kda"},
}
# An evaluated example against a trained one: no backward.
FORWARD = 1 / 3


@dataclass(frozen=True)
class Estimate:
    """Seconds for one run that does not stop early; within a factor of two or three, or `guessed`."""

    seconds: float
    guessed: bool


def estimate(case: RecallCase, device: str) -> Estimate:
    """The time of a run: on a GPU its share of the device, with others beside it."""
    on_cpu = device == "cpu"
    step = CPU if on_cpu else GPU["bf16" if case.train.precision == "bf16" else "fp32"]
    factors, default = (CPU_FACTORS, CPU_DEFAULT_FACTOR) if on_cpu else (GPU_FACTORS, GPU_DEFAULT_FACTOR)
    tokens, questions = _examples(case)
    width, words = case.d_model / 64, case.task.vocab_size / 8192
    body_s = case.steps_per_epoch * step.fixed_ms * 1e-3 + tokens * step.token_ns * width * 1e-9
    head_s = questions * step.question_ns * width * words * 1e-9
    seconds = case.train.epochs * (body_s * factors.get(case.mixer, default) + head_s)
    return Estimate(seconds, case.mixer not in TIMED["cpu" if on_cpu else "gpu"])


def _examples(case: RecallCase) -> tuple[float, float]:
    """Tokens and questions of an epoch, evaluation counted as what a forward costs of a step."""
    splits = len(evaluation_splits(case))
    parts = [(segment, segment.examples or 0.0) for segment in case.train.segments]
    parts += [(segment, FORWARD * splits * (segment.examples or case.test.examples)) for segment in case.test.segments]
    tokens = sum(examples * segment.length for segment, examples in parts)
    return tokens, sum(examples * segment.pairs for segment, examples in parts)
