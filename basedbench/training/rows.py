"""A recall run as a result row."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from basedbench.mixers import get_mixer
from basedbench.models.state import state_bytes, state_bytes_paper, state_bytes_zoology
from basedbench.store import code_version, device_name, fingerprint
from basedbench.store.schema import blank_row
from basedbench.training.cases import RecallCase
from basedbench.training.run import Progress, build_model


@dataclass(frozen=True)
class Circumstances:
    """How a run was run: what the row says besides its result."""

    device: str
    train_s: float = 0.0
    concurrent_runs: int = 1
    data_hash: str | None = None
    sizes: Mapping[str, int] | None = None  # `model_sizes`, where they were measured


def recall_row(case: RecallCase, progress: Progress, circumstances: Circumstances, reason: str = "") -> dict[str, Any]:
    """The row of a finished run, whatever its status."""
    accuracies = progress.accuracies
    sizes = circumstances.sizes if circumstances.sizes is not None else _sizes_if_any(case)
    return {
        **blank_row("recall"),
        **_case_columns(case),
        **sizes,
        "status": progress.status,
        "reason": reason or None,
        "stop_reason": progress.stop_reason or None,
        "accuracy": accuracies[-1] if accuracies else math.nan,
        "accuracy_best": max(accuracies, default=math.nan),
        "accuracy_by_slice": {name: values[-1] for name, values in progress.slices.items()},
        "accuracy_by_epoch": accuracies,
        "accuracy_by_slice_by_epoch": progress.slices,
        "validation_accuracy": progress.validation[-1] if progress.validation else None,
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


def _case_columns(case: RecallCase) -> dict[str, Any]:
    train = case.train
    return {
        "case_id": case.case_id,
        "suite": case.suite,
        "mixer": case.mixer,
        "family": get_mixer(case.mixer).family_of(case.config),
        "config": case.config_json,
        "d_model": case.d_model,
        "layers": len(case.layers),
        "layer_mixers": case.layer_mixers,
        "mixer_source": case.source,
        "layer_options": case.layer_options_json,
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


def model_sizes(case: RecallCase) -> dict[str, int]:
    """Parameters and the three counts of the state; raises whatever a mixer raises that cannot be built or begun."""
    model = build_model(case)
    return {
        "parameters": model.parameters_count(),
        "state_bytes": state_bytes(model, case.longest),
        "state_bytes_zoology": state_bytes_zoology(model, case.longest),
        "state_bytes_paper": state_bytes_paper(model, case.longest),
    }


def _sizes_if_any(case: RecallCase) -> dict[str, int]:
    """A failed run has a row whatever is wrong with its model."""
    with suppress(Exception, SystemExit):
        return model_sizes(case)
    return {}
