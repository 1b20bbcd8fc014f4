"""What the tests of records in MLflow tell a tracker, and what they read of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from artifacts.manifest import Epoch
from training.tracking import Tracker

POINT = Epoch(
    epoch=1, train_loss=0.5, train_accuracy=0.75, validation_loss=0.25, validation_accuracy=1.0,
    lr=0.01,
)  # fmt: skip


def tell_of_a_trial(tracker: Tracker, run_id: str) -> None:
    """All that can be told of a study and one of its trials."""
    trial = tracker.child(
        "trial 1", run_id, {"train.lr": 0.5, "model.hidden[0]": 8}, {"number": "1"}
    )
    trial.epoch(POINT.model_copy(update={"epoch": 3}), 0.5)
    trial.metrics({"value": 0.75})
    trial.tags({"device": "cpu"})
    trial.finish("FAILED", {"reason": "no rows"})
    tracker.metrics({"best": 0.875}, step=1)
    tracker.tags({"sampler": "tpe"})
    tracker.file(Path("study.html"), "page")


def rows(query: str) -> list[tuple[Any, ...]]:
    """Of the default store."""
    with sqlite3.connect("mlflow.db") as database:
        found = database.execute(query).fetchall()
    database.close()
    return found
