"""The process that writes runs into MLflow: JSON lines in on stdin, what came of it on stdout.

`training.tracking` starts it. It takes the seconds and the memory of `import mlflow` away
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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from training.mlflow_run import Patience, Run

_RETRY_S = 30.0
# Between two rounds: what a fast run says meanwhile goes in few requests.
_PAUSE_S = 1.0
# Of one round, in requests that fail.
_FAILING_S = 15.0
# How often it looks whether the training process is still there.
_LOOK_S = 5.0
# After the run has ended; an upload that takes longer is given up.
_LIMIT_S = 3600
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
    """The runs that are not complete yet, and the client that they go through.

    runs: by their own names; the one that was started first, which others are nested in, is None.
    end: of that one.
    """

    runs: dict[str | None, Run] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    client: Any = None
    experiment_id: str = ""
    patience: Patience = nullcontext

    def take(self, message: dict[str, Any]) -> None:
        """Keep a message until it is sent; the end of the first run ends those that are open."""
        name, kind = message.get("run"), message["kind"]
        if kind == "start" and (name is None or self.started()):
            self.runs[name] = Run(parent=None if name is None else self.runs[None])
        if kind == "end" and name is None:
            self.end = self.end or message
            for nested, run in self.runs.items():
                if nested is not None:
                    run.take({**message, "state": "KILLED"})
        # Another may have been refused or have ended.
        elif name in self.runs:
            self.runs[name].take(message)

    def started(self) -> bool:
        """Whether there is anything to tell MLflow at all."""
        return None in self.runs

    def opened(self) -> bool:
        """Whether MLflow has the first run."""
        return self.started() and bool(self.runs[None].mlflow_id)

    def waiting(self) -> bool:
        """Whether anything but the end is left to send."""
        return any(run.waiting() for run in self.runs.values())

    def send(self) -> None:
        """Send what is there, in the order of the starts; what fails is kept.

        Raises the first error, after trying the rest, unless failing takes too long.
        """
        if self.client is None:
            self._connect()
        errors: list[Exception] = []
        failing_s = 0.0
        for name, run in list(self.runs.items()):
            nested = name is not None
            if not run.waiting() or failing_s > _FAILING_S or (nested and not self.opened()):
                continue
            began, failed = time.monotonic(), len(errors)
            self._send(run, errors)
            if len(errors) > failed:
                # A dead server costs each run the wait for its answer.
                failing_s += time.monotonic() - began
            if nested and run.closed and not run.waiting():
                del self.runs[name]
        # Last: a study that has ended is one that is all there.
        if self.end is not None and self.opened():
            self.runs[None].take(self.end)
            self._send(self.runs[None], errors)
        if errors:
            raise errors[0]

    def _send(self, run: Run, errors: list[Exception]) -> None:
        try:
            run.send(self.client, self.experiment_id, self.patience)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    def page(self) -> str | None:
        """The first run's page on a tracking server."""
        uri: str = self.client.tracking_uri
        if not uri.startswith("http"):
            return None
        folder = without_credentials(uri).rstrip("/")
        return f"{folder}/#/experiments/{self.experiment_id}/runs/{self.runs[None].mlflow_id}"

    def _connect(self) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        self.experiment_id = _experiment(client, self.runs[None].start["experiment"])
        self.client = client


def _experiment(client: Any, name: str) -> str:
    if known := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Which of its two views the page opens with: that of trained models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, tags=kind))


def main() -> None:
    """Write the runs that stdin tells of; the one argument is the process that tells of them.

    When that process is gone without a word about the end, the open runs are marked KILLED.
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
        if writer.end is not None:
            if not writer.started():
                return
            signal.alarm(_LIMIT_S)
        elif not writer.waiting() or time.monotonic() < next_try:
            continue
        try:
            writer.send()
            next_try = time.monotonic() + _PAUSE_S
        except Exception as error:  # noqa: BLE001
            next_try = time.monotonic() + _RETRY_S
            tell("failed" if writer.end else "warning", reason_of(error))
        if writer.opened():
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


def _set_environment() -> Patience:
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
