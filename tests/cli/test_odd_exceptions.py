"""A user's exceptions that are no `Exception`: told like any other. Ctrl-C ends the command."""

from pathlib import Path

import pytest

from basedbench.errors import passed_over
from tests.cli.conftest import RunCli

MIXER = """
import torch
from basedbench.contenders import Contender, register as register_contender
from basedbench.mixers import Mixer, register

class Odd(BaseException):
    pass

def at(name):
    if name == "{hook}":
        raise {error}

@register
class Own(Mixer):
    name = "odd_{hook}_{number}"

    def forward(self, x_BLD):
        at("forward")
        return x_BLD

    @classmethod
    def check(cls, d_model, options):
        at("check")

    @classmethod
    def family_of(cls, options):
        at("family")
        return "own"

    @classmethod
    def init_matters(cls, options):
        at("init_matters")
        return False

    def init_state(self, batch_size, max_length, dtype=torch.float32, device=None):
        at("init_state")
        return {{"x": torch.zeros(batch_size, 1, dtype=dtype, device=device)}}

    def step(self, x_BD, state):
        at("step")
        return x_BD, state
"""
SUITE = """
kind: recall
task: {{vocab_size: 64}}
train:
  segments: [{{length: 16, pairs: 2, examples: 32}}]
  batch_size: 16
  epochs: 1
  learning_rates: [0.01]
test:
  segments: [{{length: 16, pairs: 2}}]
  examples: 20
models:
  - {{mixer: {name}, layers: [{name}], grid: {{d_model: 16}}}}
"""
DRY, RUN, CHECK = ("--dry-run",), ("--jobs", 1), ()


@pytest.mark.parametrize(
    ("hook", "error", "options", "code", "said"),
    [
        ("check", "Odd('thing')", DRY, 2, "fails at its options: Odd: thing (mine.py line 11)"),
        ("init_state", "GeneratorExit", DRY, 2, "cannot be built here: GeneratorExit (mine.py line 11)"),
        ("family", "Odd('thing')", DRY, 0, "Nothing was run"),
        ("init_matters", "Odd('thing')", RUN, 1, "runtime_error: Odd: thing"),
        ("family", "GeneratorExit", RUN, 1, "runtime_error: GeneratorExit"),
        ("step", "Odd('thing')", RUN, 0, "decoding raises Odd: thing"),
        ("forward", "GeneratorExit", RUN, 1, "on a CPU it raises GeneratorExit"),
        ("forward", "Odd('thing')", CHECK, 1, "raises Odd: thing"),
        ("check", "KeyboardInterrupt", DRY, 130, "Stopped."),
    ],
)
def test_every_exception_is_told(
    run_cli: RunCli, tmp_path: Path, hook: str, error: str, options: tuple[object, ...], code: int, said: str
) -> None:
    number = abs(hash((error, options)))
    name = f"odd_{hook}_{number}"
    (tmp_path / "mine.py").write_text(MIXER.format(hook=hook, error=error, number=number))
    (tmp_path / "s.yaml").write_text(SUITE.format(name=name))
    sweep = ["recall", "--sweep", "--suite", tmp_path / "s.yaml", "--device", "cpu", "--out", tmp_path / "out"]
    command = [*sweep, *options] if options else ["check", "mixer", name, "--d-model", 16]
    outcome = run_cli(*command, "--plugin", tmp_path / "mine.py")
    assert said in " ".join((outcome.stdout + outcome.stderr).split())
    assert outcome.exit_code == code


def test_only_the_user_ends_a_block_that_passes_over_what_is_raised() -> None:
    for error in (ValueError, SystemExit, GeneratorExit, type("Odd", (BaseException,), {})):
        with passed_over():
            raise error
    with pytest.raises(KeyboardInterrupt), passed_over():
        raise KeyboardInterrupt
