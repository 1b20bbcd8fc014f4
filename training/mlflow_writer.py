"""The process that writes one run into MLflow: JSON lines in on stdin, what came of it on stdout.

`training.tracking` starts this file. It takes the seconds and the memory of `import mlflow` away
from the training, and whatever a slow or broken tracking server does, happens to it alone. What
could not be sent is kept, and tried again as long as the run lasts.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

RUN_TAG = "parityline.run_id"
_RETRY_S = 30.0
# How often it looks whether the training process is still there.
_LOOK_S = 5.0
# After the run has ended; an upload that takes longer is given up.
_LIMIT_S = 3600
_PARAMS_PER_REQUEST = 100
_METRICS_PER_REQUEST = 900
_REASON_LENGTH = 200
# MLflow's own are 120 s and 7, so that a dead server would be found out after many minutes.
_TIMEOUT, _TIMEOUT_S, _UPLOAD_TIMEOUT_S = "MLFLOW_HTTP_REQUEST_TIMEOUT", "10", "300"
_DEFAULTS = {_TIMEOUT: _TIMEOUT_S, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "OMP_NUM_THREADS": "1"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass
class Writer:
    """One run: what has not been sent yet, and where it goes.

    start: the message of that kind, until the run is there. metrics: (name, value, step, time_ms).
    patience: a context in which MLflow waits longer for an answer.
    """

    start: dict[str, Any] | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    bundle: str | None = None
    end: dict[str, Any] | None = None
    client: Any = None
    experiment_id: str = ""
    run_id: str = ""
    attempts: int = 0
    patience: Callable[[], AbstractContextManager[None]] = nullcontext

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
            case "bundle":
                self.bundle = message["path"]
            case "end":
                self.end = self.end or message

    def waiting(self) -> bool:
        """Whether anything but the end is left to send."""
        return bool(self.start or self.params or self.tags or self.metrics or self.bundle)

    def send(self) -> None:
        """Send what is there; what fails is kept. Raises the first error, after trying the rest."""
        if self.start is not None:
            self._open(self.start)
            self.start = None
        errors = []
        for send in (self._send_values, self._send_bundle, self._send_end):
            try:
                send()
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        if errors:
            raise errors[0]

    def page(self) -> str | None:
        """The run's page on a tracking server."""
        uri: str = self.client.tracking_uri
        if not uri.startswith("http"):
            return None
        folder = without_credentials(uri).rstrip("/")
        return f"{folder}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def _open(self, start: dict[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self.client = self.client or MlflowClient()
        self.attempts += 1
        self.experiment_id = self._experiment(start["experiment"])
        tags = start["tags"] | {RUN_TAG: start["run_id"]}
        found = []
        # A request that was not answered in time may have made the run all the same.
        if start["resumed"] or self.attempts > 1:
            query = f"tags.`{RUN_TAG}` = '{start['run_id']}'"
            found = self.client.search_runs([self.experiment_id], query)
        if found:
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
            self.tags = tags | self.tags
            # MLflow refuses a parameter's second value.
            self.params = {k: v for k, v in self.params.items() if k not in run.data.params}
        else:
            run = self.client.create_run(
                self.experiment_id, start["time_ms"], tags=tags, run_name=start["name"]
            )
        self.run_id = run.info.run_id

    def _experiment(self, name: str) -> str:
        if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Which of its two views the page opens with: that of trained models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(self.client.create_experiment(name, tags=kind))

    def _send_values(self) -> None:
        from mlflow.entities import Metric, Param, RunTag

        while self.params:
            part = list(self.params.items())[:_PARAMS_PER_REQUEST]
            self.client.log_batch(self.run_id, params=[Param(*pair) for pair in part])
            for name, _ in part:
                del self.params[name]
        if self.tags:
            self.client.log_batch(self.run_id, tags=[RunTag(*pair) for pair in self.tags.items()])
            self.tags = {}
        while self.metrics:
            metrics = [
                Metric(name, value, time_ms, step)
                for name, value, step, time_ms in self.metrics[:_METRICS_PER_REQUEST]
            ]
            self.client.log_batch(self.run_id, metrics=metrics)
            del self.metrics[: len(metrics)]

    def _send_bundle(self) -> None:
        if self.bundle is not None:
            # A server may pass a large file on to its own storage before it answers.
            with self.patience():
                self.client.log_artifacts(self.run_id, self.bundle, "bundle")
            self.bundle = None

    def _send_end(self) -> None:
        if self.end is not None:
            self.client.set_terminated(self.run_id, self.end["state"], self.end["time_ms"])


def main() -> None:
    """Write the run that stdin tells of; the one argument is the process that tells it.

    When that process is gone without a word about the end, the run is marked KILLED.
    """
    parent = int(sys.argv[1])
    answers = _own_stdout()
    # Training comes first; a Ctrl-C or a closed terminal is for it, and it says what follows.
    os.nice(5)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    writer = Writer(patience=_set_environment())
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    next_try, told = 0.0, set()

    def tell(what: str, value: str | None = None) -> None:
        if what not in told:
            told.add(what)
            _write(answers, {"kind": what, "value": value})

    while writer.end is None:
        now = time.monotonic()
        wait = min(_LOOK_S, max(0.0, next_try - now)) if writer.waiting() else _LOOK_S
        for message in _arrived(messages, wait, parent):
            writer.take(message)
        ended = writer.end is not None
        if ended:
            if writer.start is None and not writer.run_id:
                return
            signal.alarm(_LIMIT_S)
        elif not writer.waiting() or time.monotonic() < next_try:
            continue
        try:
            writer.send()
        except Exception as error:  # noqa: BLE001
            next_try = time.monotonic() + _RETRY_S
            tell("failed" if ended else "warning", reason_of(error))
        if writer.run_id:
            tell("started", writer.page())
    if "failed" not in told:
        tell("done")
    # Threads of MLflow's could hold it up; everything is sent.
    os._exit(0)


def reason_of(error: BaseException) -> str:
    """Why, in one line: what the innermost error says."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    line = " ".join(str(error).split()) or type(error).__name__
    line = without_credentials(line)
    return line if len(line) <= _REASON_LENGTH else f"{line[:_REASON_LENGTH]}..."


def without_credentials(text: str) -> str:
    """`text` without the USER:PASSWORD@ of the addresses in it."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def _own_stdout() -> TextIO:
    """What stdout was; from now on, what anyone prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


def _write(answers: TextIO, message: dict[str, Any]) -> None:
    # The run may not have waited.
    with suppress(OSError):
        print(json.dumps(message), file=answers, flush=True)


def _set_environment() -> Callable[[], AbstractContextManager[None]]:
    """Set MLflow's variables, where they are not set, before its import; a `patience` for them."""
    own_timeout = _TIMEOUT not in os.environ
    os.environ.update({**_DEFAULTS, **os.environ, **_QUIET})

    @contextmanager
    def patience() -> Iterator[None]:
        os.environ[_TIMEOUT] = _UPLOAD_TIMEOUT_S
        try:
            yield
        finally:
            os.environ[_TIMEOUT] = _TIMEOUT_S

    return patience if own_timeout else nullcontext


def _read(messages: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        # A line is cut when the process was stopped while it wrote.
        with suppress(ValueError):
            messages.put(json.loads(line))
    messages.put(_killed())


def _arrived(
    messages: queue.SimpleQueue[dict[str, Any]], wait_s: float, parent: int
) -> Iterator[dict[str, Any]]:
    """The messages that are there within `wait_s`."""
    try:
        yield messages.get(timeout=wait_s)
        while True:
            yield messages.get_nowait()
    except queue.Empty:
        # A process that was forked from the training may still hold the pipe open.
        if os.getppid() != parent and messages.empty():
            time.sleep(0.1)
            yield _killed() if messages.empty() else messages.get()


def _killed() -> dict[str, Any]:
    return {"kind": "end", "state": "KILLED", "time_ms": time.time_ns() // 10**6}


if __name__ == "__main__":
    main()
