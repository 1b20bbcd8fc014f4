"""One run in MLflow: what of it has not been sent yet, and sending that."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

RUN_TAG = "parityline.run_id"
# What `mlflow ui` folds a study's runs by.
_PARENT_TAG = "mlflow.parentRunId"
_TEXTS_PER_REQUEST = 100
_METRICS_PER_REQUEST = 900
Patience = Callable[[], AbstractContextManager[None]]


@dataclass
class Run:
    """A run, or one of those nested in it.

    parent: the run that it is nested in, which must be opened before it.
    start: the message of that kind, until the run is there. metrics: (name, value, step, time_ms).
    files: folders by the file or folder that is attached into them. end: the first one counts.
    """

    parent: Run | None = None
    start: dict[str, Any] | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    files: dict[str, str | None] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    mlflow_id: str = ""
    attempts: int = 0
    closed: bool = False

    def take(self, message: dict[str, Any]) -> None:
        """Keep a message of the run until it is sent; the first end is the one that counts."""
        match message["kind"]:
            case "start":
                self.start, self.params = message, message["params"]
            case "metrics":
                step, time_ms = message["step"], message["time_ms"]
                self.metrics += [(k, v, step, time_ms) for k, v in message["metrics"].items()]
            case "tags":
                self.tags |= message["tags"]
            case "file":
                self.files[message["path"]] = message["folder"]
            case "end":
                self.end = self.end or message

    def waiting(self) -> bool:
        """Whether anything is left to send."""
        unsent = self.start or self.params or self.tags or self.metrics or self.files
        return bool(unsent) or (self.end is not None and not self.closed)

    def send(self, client: Any, experiment_id: str, patience: Patience = nullcontext) -> None:
        """Send what is there; what fails is kept. Raises the first error, after trying the rest.

        client: an MlflowClient. patience: a context in which it waits longer for an answer.
        """
        if self.start is not None:
            self._open(client, experiment_id, self.start)
            self.start = None
        errors = []
        for part, send in (
            (self.params, self._send_params),
            (self.tags, self._send_tags),
            (self.metrics, self._send_metrics),
            (self.files, partial(self._send_files, patience=patience)),
            (self.end and not self.closed, self._send_end),
        ):
            try:
                if part:
                    send(client)
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        if errors:
            raise errors[0]

    def _open(self, client: Any, experiment_id: str, start: dict[str, Any]) -> None:
        self.attempts += 1
        tags = start["tags"] | {RUN_TAG: start["run_id"]}
        if self.parent is not None:
            tags[_PARENT_TAG] = self.parent.mlflow_id
        found = []
        # A request that was not answered in time may have made the run all the same.
        if start["resumed"] or self.attempts > 1:
            query = f"tags.`{RUN_TAG}` = '{start['run_id']}'"
            found = client.search_runs([experiment_id], query)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
            self.tags = tags | self.tags
            # MLflow refuses a parameter's second value.
            self.params = {k: v for k, v in self.params.items() if k not in run.data.params}
        else:
            run = client.create_run(
                experiment_id, start["time_ms"], tags=tags, run_name=start["name"]
            )
        self.mlflow_id = run.info.run_id

    def _send_params(self, client: Any) -> None:
        from mlflow.entities import Param

        while self.params:
            part = dict(list(self.params.items())[:_TEXTS_PER_REQUEST])
            client.log_batch(self.mlflow_id, params=[Param(*pair) for pair in part.items()])
            for name in part:
                del self.params[name]

    def _send_tags(self, client: Any) -> None:
        from mlflow.entities import RunTag

        while self.tags:
            part = dict(list(self.tags.items())[:_TEXTS_PER_REQUEST])
            client.log_batch(self.mlflow_id, tags=[RunTag(*pair) for pair in part.items()])
            for name in part:
                del self.tags[name]

    def _send_metrics(self, client: Any) -> None:
        from mlflow.entities import Metric

        while self.metrics:
            metrics = [
                Metric(name, value, time_ms, step)
                for name, value, step, time_ms in self.metrics[:_METRICS_PER_REQUEST]
            ]
            client.log_batch(self.mlflow_id, metrics=metrics)
            del self.metrics[: len(metrics)]

    def _send_files(self, client: Any, patience: Patience) -> None:
        for path, folder in list(self.files.items()):
            attach = client.log_artifacts if Path(path).is_dir() else client.log_artifact
            # A server may pass a large file on to its own storage before it answers.
            with patience():
                attach(self.mlflow_id, path, folder)
            del self.files[path]

    def _send_end(self, client: Any) -> None:
        assert self.end is not None
        client.set_terminated(self.mlflow_id, self.end["state"], self.end["time_ms"])
        self.closed = True
