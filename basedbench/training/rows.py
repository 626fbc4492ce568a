"""A recall run as a result row."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from basedbench.errors import passed_over, printable
from basedbench.mixers import get_mixer
from basedbench.models.state import state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.store import code_version, device_name, fingerprint
from basedbench.store.schema import blank_row
from basedbench.training.cases import RecallCase, init_matters
from basedbench.training.run import Progress, build_model


@dataclass(frozen=True)
class Circumstances:
    """How a run was run: what the row says besides its result."""

    device: str
    train_s: float = 0.0
    concurrent_runs: int = 1
    data_hash: str | None = None
    described: Mapping[str, Any] | None = None  # `described`, where that was found out


def recall_row(case: RecallCase, progress: Progress, circumstances: Circumstances, reason: str = "") -> dict[str, Any]:
    """The row of a finished run, whatever its status."""
    accuracies = progress.accuracies
    ended = accuracies if progress.status == "ok" else []  # what a failed run had on its way is no result
    described = _family_if_any(case) if circumstances.described is None else circumstances.described
    return {
        **blank_row("recall"),
        **_case_columns(case),
        **described,
        "status": progress.status,
        "reason": reason or _why(progress) or None,
        "stop_reason": progress.stop_reason or None,
        "accuracy": ended[-1] if ended else math.nan,
        "accuracy_best": max(ended, default=math.nan),
        "accuracy_by_slice": {name: values[-1] for name, values in progress.slices.items()} if ended else {},
        "accuracy_by_epoch": accuracies,
        "accuracy_by_slice_by_epoch": progress.slices,
        "validation_accuracy": progress.validation[-1] if ended and progress.validation else None,
        "loss_by_epoch": progress.losses,
        "steps": progress.steps,
        "train_s": circumstances.train_s,
        "concurrent_runs": circumstances.concurrent_runs,
        "data_hash": circumstances.data_hash,
        "device": circumstances.device.split(":")[0],
        "device_name": device_name(circumstances.device),
        "code_version": code_version(),
        "fingerprint": json.dumps(fingerprint(circumstances.device), sort_keys=True),
    }


def _why(progress: Progress) -> str:
    """Why a run failed, or what is to be known of one that came to its end, but answers with no number somewhere."""
    if progress.status != "ok":
        return progress.stop_reason
    if not progress.not_finite:
        return ""
    return f"answers are not finite in {', '.join(progress.not_finite)} of the test"


def _case_columns(case: RecallCase) -> dict[str, Any]:
    train = case.train
    return {
        "case_id": case.case_id,
        "suite": case.suite,
        "mixer": case.mixer,
        "config": case.config_json,
        "d_model": case.d_model,
        "layers": len(case.layers),
        "layer_mixers": case.layer_mixers,
        "mixer_source": case.source,
        "layer_options": case.layer_options_json,
        "state_doubt": case.state_doubt,
        "learning_rate": case.learning_rate,
        "seed": case.seed,
        "precision": train.precision,
        "epochs": train.epochs,
        "init": train.init,
        "batch_size": train.batch_size,
        "weight_decay": train.weight_decay,
        "vocab_size": case.task.vocab_size,
        "task": case.task_json(),
        "recipe": train.model_dump_json(exclude={"segments", "learning_rates", "seeds"}),
        "select_split": case.test.select,
    }


def described(case: RecallCase) -> dict[str, Any]:
    """What a row says of the model; raises whatever a mixer raises, or ValueError for what no row can hold.

    A run asks for it first: what is wrong with a mixer is the run's own failure then, not that of storing its row.
    Of a state that is in doubt it says nothing.
    """
    init_matters(case.layers)
    sizes = {"parameters": build_model(case).parameters_count()} if case.state_doubt else model_sizes(case)
    return sizes | {"family": family(case)}


def model_sizes(case: RecallCase) -> dict[str, int]:
    """Parameters and the three counts of the state; raises whatever a mixer raises that cannot be built or begun."""
    model = build_model(case)
    sizes = {
        "parameters": model.parameters_count(),
        "state_bytes": state_bytes(model, case.longest),
        "state_bytes_zoology": state_bytes_zoology(model, case.longest),
        "state_bytes_paper": state_bytes_paper(model, case.longest),
    }
    for name, size in sizes.items():
        if not 0 <= size < 2**63 or size != int(size):
            raise ValueError(f"{name} is {size!r}, not a whole number below 2**63")
    return {name: int(size) for name, size in sizes.items()}


def family(case: RecallCase) -> str:
    """The line in plots that the mixer says it belongs to."""
    found = get_mixer(case.mixer).family_of(case.config)
    if not isinstance(found, str):
        raise ValueError(f"family_of of mixer {case.mixer!r} gives {found!r}, not a text")
    return printable(found)


def _family_if_any(case: RecallCase) -> dict[str, Any]:
    """A failed run has a row whatever is wrong with its mixer. Its model is not built: that may be what failed."""
    with passed_over():
        return {"family": family(case)}
    return {}
