"""A run's record in MLflow, written by a process of its own that can cost the run nothing.

with tracking(True, console) as tracker:
    tracker.start("digits", recipe, {"commit": "0123abc"})
    tracker.epoch(record)
    tracker.finish(manifest, path)

A study is a run with one nested in it for each trial:

    trial = tracker.child("trial 0", run_id, {"train.lr": 0.01}, {})
    trial.epoch(record)
    trial.finish("FINISHED", {})
    tracker.metrics({"best": 0.97}, step=0)

Sending is a write into a pipe that never waits. Whatever goes wrong over there is one line here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from artifacts.errors import DataError, ParitylineError
from artifacts.manifest import Epoch, Manifest
from artifacts.terminal import busy, tell
from training.interrupts import Interrupted
from training.mlflow_child import Child
from training.mlflow_names import flat_metrics, flat_params, source_tags, trial_params
from training.mlflow_pipe import Pipe
from training.mlflow_writer import without_credentials

SWITCH = "PARITYLINE_TRACK"
# How long a run that has ended waits for the rest to be sent; then the writer goes on by itself.
WAIT_S = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}
_ERROR_LENGTH = 500


def wanted(asked: bool | None) -> bool:
    """Whether to track: as asked, else as $PARITYLINE_TRACK (0 or 1) says, else where MLflow is.

    Raises DataError for another value, ParitylineError when MLflow is asked for and not there.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise DataError(f"{SWITCH}: expected 0 or 1, found {switch!r}")
    if asked is None and switch:
        asked = switch == "1"
    if asked is False:
        return False
    # Importing it would take seconds. A mere folder of that name has no origin.
    spec = importlib.util.find_spec("mlflow")
    installed = spec is not None and spec.origin is not None
    if asked and not installed:
        raise ParitylineError("mlflow is not installed: pip install 'parityline[track]'")
    return installed


def tracking(on: bool, console: Console) -> Tracker:
    """A context in which a run may be tracked; when not `on`, every method does nothing."""
    return Tracker(on, console)


class Tracker:
    """One run's record. Leaving the context ends it: FINISHED, FAILED, or KILLED by Ctrl-C.

    No method raises. None waits, but the leaving of the context: for WAIT_S at most.
    All are called by one thread. Trials that have no end then are KILLED.
    run_id: names the record, from its start; not MLflow's own, which comes late. None when off.
    """

    def __init__(self, on: bool, console: Console) -> None:
        self.run_id: str | None = None
        self._on = on
        self._console = console
        self._pipe: Pipe | None = None
        self._server = ""
        self._command, self._resumed = "", False
        self._run = Child(self._send)
        self._page: str | None = None
        self._warned = False

    def start(
        self,
        name: str,
        recipe: dict[str, Any],
        tags: dict[str, str | None],
        run_id: str | None = None,
        *,
        resumed: bool = False,
        command: str = "train",
    ) -> None:
        """Begin the record of `run_id`, or a new one; when `resumed`, continue it.

        name: of the run, and of the experiment where $MLFLOW_EXPERIMENT_NAME names no other.
        recipe: resolved; its keys become parameters. tags: by their names after "parityline.".
        command: of Parityline's, that this is the record of.
        """
        if not self._on:
            return
        self.run_id = run_id or uuid.uuid4().hex
        self._command, self._resumed = command, resumed
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._server = without_credentials(uri) if uri else "the working directory"
        try:
            self._pipe = Pipe()
        except OSError as error:
            self._warn(f"MLflow's process cannot be started: {error}; the run is not recorded")
            return
        self._say(f"MLflow run {name} in {self._server}{_to_see_it(uri)}")
        tags = {**tags, "resumed": str(resumed).lower()}
        self._send(
            "start", name=name, experiment=name, run_id=self.run_id, resumed=resumed,
            params=flat_params(recipe), tags=source_tags(tags, command),
        )  # fmt: skip

    def child(
        self, name: str, run_id: str, params: dict[str, Any], tags: dict[str, str | None]
    ) -> Child:
        """Begin the record of a trial, nested in this one.

        run_id: names it, in hexadecimal digits; one that a resumed study has already is continued.
        params: by recipe keys, "model.hidden[0]". tags: by their names after "parityline.".
        """
        self._send(
            "start", run=run_id, name=name, run_id=run_id, resumed=self._resumed,
            params=trial_params(params), tags=source_tags(tags, self._command),
        )  # fmt: skip
        return Child(partial(self._send, run=run_id))

    def epoch(self, record: Epoch, seconds: float | None = None) -> None:
        """Add a point to each curve. seconds: that the epoch took."""
        self._run.epoch(record, seconds)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each of these names."""
        self._run.metrics(values, step)

    def tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags, by their names after "parityline."."""
        self._run.tags(tags)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Attach the file, as it is when it is sent, into that folder of the record."""
        self._send("file", path=str(path.absolute()), folder=folder)

    def followed(self, show: Callable[[Epoch, float], None]) -> Callable[[Epoch, float], None]:
        """`show`, where each call also adds to the curves."""

        def show_and_add(record: Epoch, seconds: float) -> None:
            show(record, seconds)
            self.epoch(record, seconds)

        return show_and_add

    def finish(self, manifest: Manifest, path: Path) -> None:
        """Add the released bundle in the folder `path`, and its figures."""
        metrics = flat_metrics(manifest.model_dump(include={"metrics"})["metrics"])
        self._send("metrics", metrics=metrics, step=manifest.kept_epoch or 0)
        self.tags({"bundle": manifest.reference})
        self.file(path, "bundle")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        state = "FINISHED"
        if error is not None:
            state = "FAILED" if isinstance(error, Exception) else "KILLED"
            line = str(error) if isinstance(error, ParitylineError) else repr(error)
            self.tags({"error": line[:_ERROR_LENGTH]})
        self._send("end", state=state)
        # Who interrupts this wait means the wait.
        with contextlib.suppress(KeyboardInterrupt, Interrupted):
            self._wait(WAIT_S[state])
        if self._pipe is not None:
            pid = self._pipe.process.pid
            self._warn(f"{self._server} has not taken all yet; process {pid} goes on with it")
            self._close()

    def _send(self, kind: str, **content: Any) -> None:
        if self._pipe is not None:
            self._pipe.send({"kind": kind, "time_ms": time.time_ns() // 10**6, **content})
            self._listen()

    def _listen(self) -> None:
        """Hear what the writer has said, if anything."""
        assert self._pipe is not None
        for answer in self._pipe.listen():
            self._take(answer["kind"], answer["value"])
        if self._pipe is not None and self._pipe.gone:
            self._warn("MLflow's process has died; the run goes on without it")
            self._close()

    def _take(self, kind: str, value: str | None) -> None:
        if kind == "started":
            self._page = value
        elif kind == "warning":
            self._warn(
                f"{self._server}: {value}; the run goes on, and it is tried again until the end"
            )
        elif kind == "failed":
            self._warn(f"{self._server}: {value}; the record is not complete")
            self._close()
        elif kind == "done":
            if self._pipe is not None and self._pipe.lost:
                self._warn(f"{self._pipe.lost} messages are not in the record: they came too fast")
            elif self._warned:
                self._say("the record is complete after all")
            if self._page is not None:
                self._say(self._page)
            self._close()

    def _wait(self, seconds: float) -> None:
        """Push and listen until the writer is done."""
        deadline = time.monotonic() + seconds
        with self._progress():
            while self._pipe is not None and (left := deadline - time.monotonic()) > 0:
                self._pipe.wait(left)
                self._listen()

    def _progress(self) -> contextlib.AbstractContextManager[object]:
        if self._pipe is None:
            return contextlib.nullcontext()
        return busy(self._console, "tracking: sending the rest to MLflow")

    def _close(self) -> None:
        """Part with the writer, which ends by itself."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _warn(self, line: str) -> None:
        """Once: whatever follows from a fault is not another."""
        if not self._warned:
            self._warned = True
            self._say(line)

    def _say(self, line: str) -> None:
        tell(self._console, f"tracking: {line}")


def _to_see_it(uri: str | None) -> str:
    """What to type to look at a store that no server shows, in brackets."""
    if not uri:
        return " (mlflow ui)"
    if uri.startswith(("http:", "https:", "databricks")):
        return ""
    # A password is not to be read on a screen; the shell knows it.
    shown = shlex.quote(uri) if without_credentials(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    return f" (mlflow ui --backend-store-uri {shown})"
