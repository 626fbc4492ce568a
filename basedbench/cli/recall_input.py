"""What the options of `basedbench recall` mean: a suite, possibly narrowed to one model, and the places to run it."""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import ValidationError

from basedbench.config import RecallSuite, load_suite, plain_yaml
from basedbench.config.load import explain
from basedbench.config.recall import ModelSection
from basedbench.engines import Place, cores
from basedbench.engines.devices import default_precision
from basedbench.errors import UserError, nearest
from basedbench.mixers import get_mixer

GPU_SLOTS = 12  # small models gain up to 7 % over eight (docs/log/company.md), large ones nothing
D_MODEL = 64
MOST_SEEDS = 100_000
ALIKE = 0.8  # of two words' letters: --sute and --suite, not --heads and --seed
FOLDER_WORDS = ("--results", "--output", "--outdir", "--out-dir", "--folder")  # for --out, elsewhere


def choose_suite(
    name: str | None,
    devices: Sequence[str],
    *,
    lr: str | None,
    seed: str | None,
    epochs: int | None,
    precision: str | None,
) -> RecallSuite:
    """The suite asked for, with the recipe's overrides."""
    suite: RecallSuite = load_suite(("quick" if devices == ["cpu"] else "figure2") if name is None else name, "recall")
    changes: dict[str, Any] = {}
    if lr is not None:
        changes["learning_rates"] = _numbers("--lr", lr)
    if seed is not None:
        changes["seeds"] = _seeds(seed)
    if epochs is not None:
        changes["epochs"] = epochs
    if precision is not None:
        changes["precision"] = precision
    models = [section.model_dump() | ({"learning_rates": None} if lr is not None else {}) for section in suite.models]
    return _rebuilt(suite, {"train": suite.train.model_dump() | changes, "models": models}) if changes else suite


def settle_precision(suite: RecallSuite, devices: Sequence[str]) -> RecallSuite:
    """The suite with a precision for these devices, where it leaves that open."""
    if suite.train.precision != "auto":
        return suite
    train = suite.train.model_copy(update={"precision": default_precision(devices)})
    return suite.model_copy(update={"train": train})


def narrow(
    suite: RecallSuite,
    sweep: bool,
    mixer: str | None,
    d_model: int | None,
    layers: str | None,
    extra: Sequence[str],
    known: Collection[str] = (),
) -> RecallSuite:
    """The suite itself for `--sweep`, else the suite with the one model that was asked for.

    `extra` are the words behind a mixer's options; `known` the options of the command, which may have been meant.
    """
    meant = next((word for word in extra if word.partition("=")[0] in FOLDER_WORDS), None)
    if meant:
        raise UserError(f"{meant} is no option of `basedbench recall`; the results folder is --out FOLDER.")
    if sweep or mixer is None:
        _refuse_misspelt(extra, known)
    if sweep:
        options = {"--mixer": mixer, "--d-model": d_model, "--layers": layers, **dict.fromkeys(extra[:1], True)}
        given = next((option for option, value in options.items() if value is not None), None)
        if given:
            raise UserError(f"{given} does not go with --sweep; choose runs with --filter, or leave --sweep out.")
        return suite
    if mixer is None:
        raise UserError("say --sweep for a whole suite, or --mixer NAME for one model (basedbench list mixers).")
    grid = {"d_model": D_MODEL if d_model is None else d_model, **given_options(extra)}
    own = next((section for section in suite.models if section.mixer == mixer), None)  # as the suite trains it
    stack = [name.strip() for name in layers.split(",")] if layers else default_layers(own, mixer)
    rates = own.learning_rates if own else None
    return _rebuilt(suite, {"models": [{"mixer": mixer, "layers": stack, "grid": grid, "learning_rates": rates}]})


def _refuse_misspelt(extra: Sequence[str], known: Collection[str]) -> None:
    """UserError for words that hardly differ from an option, where no mixer is there whose options they could be."""
    for word in extra:
        name = word.partition("=")[0]
        if name.startswith("--") and get_close_matches(name, known, n=1, cutoff=ALIKE):
            raise UserError(f"no such option {name}: {nearest(name, known)}")


def default_layers(section: ModelSection | None, mixer: str) -> list[Any]:
    """As a suite's section stacks this mixer; without one as the paper would: Mamba twice, others above a BaseConv."""
    if section:
        return [layer if isinstance(layer, str) else layer.model_dump() for layer in section.layers]
    return [mixer, mixer] if get_mixer(mixer).block == "mamba" else ["base_conv", mixer]


def places(devices: Sequence[str], jobs: int | None) -> list[Place]:
    """On a CPU a process per run, one thread each: small models gain little from more. On GPUs one process each."""
    if list(devices) == ["cpu"]:
        return [Place("cpu", slots=1) for _ in range(jobs or cores())]
    return [Place(device, slots=jobs or GPU_SLOTS, threads=max(1, cores() // len(devices))) for device in devices]


def given_options(extra: Sequence[str]) -> dict[str, Any]:
    """`--feature-dim 16 --window=64` as a mapping; the mixer itself refuses what it does not know."""
    options: dict[str, Any] = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        name, given, value = word.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise UserError(f"did not expect {word!r}; options are written --name value.")
        if not given:
            if not words or words[0].startswith("--"):
                raise UserError(f"{name} needs a value.")
            value = words.pop(0)
        own = name[2:].replace("-", "_")
        if own in options:
            raise UserError(f"{name} is given twice; several values are a list, such as [8,16].")
        options[own] = _value(name, value)
    return options


def _value(name: str, text: str) -> Any:
    try:
        return plain_yaml.read(text)
    except plain_yaml.AmbiguousError as error:
        raise UserError(f"{name}: {plain_yaml.problem(error)}.") from None
    except yaml.YAMLError:
        raise UserError(f"{name} {text!r} is no value; a number, a word, or a list such as [8,16].") from None


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes numbers separated by commas, got {text!r}.") from None


def _seeds(text: str) -> list[int]:
    """Whole numbers and ranges of them: `0,1,7` or `0-9`."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)-(\d+)\s*", part)
        first, last = (int(ends[1]), int(ends[2])) if ends else (0, -1)
        if ends and not first <= last < first + MOST_SEEDS:
            raise UserError(f"--seed {part.strip()}: a range goes up, by fewer than {MOST_SEEDS:,}.")
        try:
            found += range(first, last + 1) if ends else [int(part)]
        except ValueError:
            raise UserError(f"--seed takes whole numbers and ranges, such as 0,1,7 or 0-9, got {text!r}.") from None
    return found


def _rebuilt(suite: RecallSuite, changes: dict[str, Any]) -> RecallSuite:
    try:
        return RecallSuite.model_validate(suite.model_dump() | changes)
    except ValidationError as error:
        option = {"learning_rates": "--lr", "seeds": "--seed", "epochs": "--epochs"}
        said = re.sub(rf"^train\.({'|'.join(option)})(\[\d+\])?: ", lambda key: f"{option[key[1]]}: ", explain(error))
        raise UserError(said) from None
