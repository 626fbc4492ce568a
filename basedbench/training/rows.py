"""A recall run as a result row."""

import json
import math
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


def recall_row(case: RecallCase, progress: Progress, circumstances: Circumstances, reason: str = "") -> dict[str, Any]:
    """The row of a finished run, whatever its status."""
    accuracies = progress.accuracies
    return {
        **blank_row("recall"),
        **_case_columns(case),
        **_model_columns(case),
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


def _model_columns(case: RecallCase) -> dict[str, Any]:
    model = build_model(case)
    return {
        "parameters": model.parameters_count(),
        "state_bytes": state_bytes(model, case.longest),
        "state_bytes_zoology": state_bytes_zoology(model, case.longest),
        "state_bytes_paper": state_bytes_paper(model, case.longest),
    }
