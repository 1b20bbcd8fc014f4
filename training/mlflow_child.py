"""The record of one trial of a study: an MLflow run, nested in that of the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from artifacts.manifest import Epoch
from training.mlflow_names import curve_points, metric_points, own_tags

State = Literal["FINISHED", "FAILED", "KILLED"]


class Send(Protocol):
    """Passes a message about this run on; never raises, never waits."""

    def __call__(self, kind: str, **content: object) -> None: ...


class Child:
    """One trial's record, until its `finish`. No method raises or waits."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def epoch(self, record: Epoch, seconds: float | None = None) -> None:
        """Add a point to each curve. seconds: that the epoch took."""
        figures = {**record.model_dump(exclude={"epoch"}), "seconds": seconds}
        self._send("metrics", metrics=curve_points(figures), step=record.epoch)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add a point to the curve of each of these names."""
        self._send("metrics", metrics=metric_points(values), step=int(step))

    def tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags, by their names after "parityline."; those that are None or empty are left."""
        self._send("tags", tags=own_tags(tags))

    def finish(self, state: State, tags: Mapping[str, str | None]) -> None:
        """End the record: as FINISHED, FAILED or KILLED, with these tags too."""
        self.tags(tags)
        self._send("end", state=state)
