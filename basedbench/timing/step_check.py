"""Whether a language model's steps are right: what prefill and steps give, against the parallel form.

The truth is the parallel form with the same weights in float32. Allowed is twice the error that the parallel form makes
in the case's own dtype, plus a floor; in float32, where it makes none, the floor is what is allowed. There are two
prompts, longer than a sliding window so that its ring comes round. All but their last tokens are read at once, the rest
step by step; their first tokens also step by step from the empty state. The prompts are the same whatever the case's
batch and context, and so is the verdict.
"""

import copy

import torch
from torch import Tensor

from basedbench.config.models import ModelCase
from basedbench.contenders.language import any_backend, context
from basedbench.models.language import LanguageModel
from basedbench.timing.correctness import Verdict, verdict
from basedbench.timing.errors import findings

SEQUENCES, SEED = 2, 0
PROMPT, STEPS, FIRST_STEPS = 136, 8, 16
# Many layers, in orders of summation that differ from form to form: more than one operator may be off by.
FLOAT32_FLOOR = 1e-3


@torch.no_grad()
def check_steps(model: LanguageModel, case: ModelCase) -> Verdict:
    """The verdict on a model, computed as the case says."""
    device, vocabulary = model.embedding.weight.device, model.config.vocab_size
    generator = torch.Generator(device).manual_seed(SEED)
    tokens_BL = torch.randint(vocabulary, (SEQUENCES, PROMPT + STEPS), generator=generator, device=device)
    with context(case):
        results = _results(model, case, tokens_BL)
    wide = copy.deepcopy(model).float()
    wide.attention = "auto"
    with any_backend():  # float32 has no FlashAttention, which the case may insist on
        truth_BLV, same_BLV = wide(tokens_BL), model(tokens_BL)
    del wide
    floor = FLOAT32_FLOOR if case.dtype == "fp32" else None
    truth, same = (_by_position(logits_BLV, results) for logits_BLV in (truth_BLV, same_BLV))
    return verdict(findings(results, same, truth, case.dtype, 0, floor), "the parallel form in float32")


def _results(model: LanguageModel, case: ModelCase, tokens_BL: Tensor) -> dict[str, Tensor]:
    """Logits (B, L, V) by how they came about."""
    prompt_BL = tokens_BL[:, :PROMPT]
    logits_BV, state = model.prefill(prompt_BL, max_length=PROMPT + STEPS)
    found = {"the prompt's last logits": logits_BV[:, None]}
    found["steps behind the prompt"] = _stepped(model, tokens_BL[:, PROMPT:], state, PROMPT)
    empty = model.init_state(SEQUENCES, FIRST_STEPS)
    found["steps from the empty state"] = _stepped(model, tokens_BL[:, :FIRST_STEPS], empty, 0)
    if case.logits == "all":
        found["the prompt's logits"] = model.prefill(prompt_BL, logits="all")[0]
    return found


def _stepped(model: LanguageModel, tokens_BL: Tensor, state: dict[str, Tensor], before: int) -> Tensor:
    """Logits (B, L, V), one token at a time behind `before` others."""
    found = []
    for index, tokens_B in enumerate(tokens_BL.unbind(1)):
        logits_BV, state = model.step(tokens_B, state, extent=before + index + 1)
        found.append(logits_BV)
    return torch.stack(found, 1)


def _by_position(logits_BLV: Tensor, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parallel form's logits where the results have theirs."""
    parts = {
        "the prompt's last logits": slice(PROMPT - 1, PROMPT),
        "steps behind the prompt": slice(PROMPT, PROMPT + STEPS),
        "steps from the empty state": slice(0, FIRST_STEPS),
        "the prompt's logits": slice(0, PROMPT),
    }
    return {name: logits_BLV[:, parts[name]] for name in results}
