"""Compile the kernels of decode steps for an H200, as dependents and not; a JSON line for each (compile_variants.py).

python -m tests.kernels.compiled.compile_dependents --every
"""

import importlib
import re
import sys
from typing import Any

import torch

from basedbench.kernels import dependents, row_argmax
from basedbench.models.language import LanguageModel, preset
from tests.kernels.compiled.disassembly import facts, tell
from tests.kernels.compiled.sass import register_count
from tests.kernels.compiled.target import pretend

WAIT, TRIGGER = "ACQBULK", "PREEXIT"
WRITES = r"STG|ATOMG|ATOM|RED|REDG|UTMASTG|ST"
READS = r"LDG|LDGSTS|UTMALDG|LD"
LAYERS = {
    "based-1.3b": ("conv", "linear", "window"),
    "based-1.3b-h112": ("linear", "window"),
    "attention-1.3b": ("attention",),
    "mamba-1.3b": ("mamba",),
    "mamba2-1.3b": ("mamba2",),
}
USUAL = ("attention-1.3b", "mamba-1.3b")  # without --every
BATCHES = (1, 128)


def dependent(kernel: Any) -> bool:
    """Whether it begins before the kernel in front of it has ended."""
    return bool(kernel.metadata.launch_pdl)


def examined(kernel: Any, text: str) -> dict[str, Any]:
    """Where the wait stands among reads and writes, in the machine code and in what the assembler was given.

    Of a kernel that is no dependent only the latter.
    """
    parts = kernel.asm["ptx"].split("griddepcontrol.wait")
    if not dependent(kernel):
        triggers = kernel.asm["ptx"].count("griddepcontrol.launch_dependents")
        return {"early": False, "waits": len(parts) - 1, "triggers": triggers}
    words = [
        word.split(".")[0] for word in re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9.]+)", text, re.M)
    ]
    wait = words.index(WAIT) if WAIT in words else None
    ahead = words[:wait]
    return {
        "early": True,
        "waits": words.count(WAIT),
        "triggers": words.count(TRIGGER),
        "reads_ahead": sum(bool(re.fullmatch(READS, word)) for word in ahead),
        "writes_ahead": sum(bool(re.fullmatch(WRITES, word)) for word in ahead),
        "asked_ahead": len(
            re.findall(r"\bld\.(?:relaxed\.|volatile\.)?global|cp\.async\.c[ag]|cp\.async\.bulk\.tensor", parts[0])
        ),
        "registers": register_count(text),
        **facts(kernel, text),
    }


def model_of(name: str) -> LanguageModel:
    """One of the preset's widths."""
    config = preset(name).model_copy(update={"layers": LAYERS[name], "vocab_size": 64})
    return LanguageModel(config, dtype=torch.bfloat16, attention="ours")


@torch.inference_mode()
def step(model: LanguageModel, batch: int, *, chained: bool) -> None:
    """A decode step."""
    dependents.ENABLED = chained
    state = model.init_state(batch, 1024, torch.bfloat16)
    with dependents.dependents(torch.device("cpu")):
        logits, _ = model.step(torch.zeros(batch, dtype=torch.int64), state)
        row_argmax(logits)


def main(*, every: bool) -> None:
    """Both forms of each kernel, dependents for both batches."""
    compiled = pretend()
    found: list[tuple[dict[str, Any], Any]] = []
    products = importlib.import_module("basedbench.kernels.row_linear")
    products._processors = lambda device: 132
    dependents.capable = lambda device: True  # type: ignore[assignment]
    seen: set[str] = set()
    for name in LAYERS if every else USUAL:
        model = model_of(name)
        for batch in BATCHES:
            for chained in (False, True) if batch == BATCHES[0] else (True,):
                step(model, batch, chained=chained)
                for kind, kernel in (compiled[key] for key in compiled.keys() - seen):
                    found.append(({"model": f"{name} {batch}", "kernel": kind}, kernel))
                seen = set(compiled)
    tell(found, examined, code=dependent)


if __name__ == "__main__":
    main(every="--every" in sys.argv)
