"""What a training after the search came to, kept in a file so that it need not be done again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifacts.manifest import Epoch
from training.tuning.storage import StudyError

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunResult:
    """value: the objective on the validation part. logits: float32 [N, K], uncalibrated.

    weights: the network's, where they were asked for.
    """

    value: float
    validation_logits: np.ndarray
    test_logits: np.ndarray
    history: tuple[Epoch, ...]
    kept_epoch: int
    weights: Weights | None


def write_result(file: Path, result: RunResult) -> None:
    """Write it aside, fsync, rename."""
    content: dict[str, Any] = {
        "value": result.value,
        "validation": torch.from_numpy(result.validation_logits),
        "test": torch.from_numpy(result.test_logits),
        "history": [record.model_dump() for record in result.history],
        "kept_epoch": result.kept_epoch,
        "weights": None
        if result.weights is None
        else {name: value.detach().cpu() for name, value in result.weights.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{os.getpid()}-{file.name}")
    try:
        with temporary.open("wb") as opened:
            torch.save(content, opened)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_result(file: Path) -> RunResult | None:
    """What `write_result` wrote; None where it is not there. Raises StudyError for other files."""
    if not file.is_file():
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        return RunResult(
            value=content["value"],
            validation_logits=content["validation"].numpy(),
            test_logits=content["test"].numpy(),
            history=tuple(Epoch.model_validate(record) for record in content["history"]),
            kept_epoch=content["kept_epoch"],
            weights=content["weights"],
        )
    # torch raises many kinds for a damaged file.
    except Exception as error:
        raise StudyError(f"{file}: damaged ({type(error).__name__}); remove it") from error
