"""A run's record in MLflow, written by a process of its own that can cost the run nothing.

with tracking(True, console) as tracker:
    tracker.start("digits", recipe, {"commit": "0123abc"})
    tracker.epoch(record)
    tracker.finish(manifest, path)

Sending is a write into a pipe that never waits. Whatever goes wrong over there is one line here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from artifacts.errors import DataError, ParitylineError
from artifacts.manifest import Epoch, Manifest
from training import mlflow_writer
from training.interrupts import Interrupted
from training.mlflow_names import curve_points, flat_metrics, flat_params, source_tags
from training.mlflow_writer import without_credentials

SWITCH = "PARITYLINE_TRACK"
# How long a run that has ended waits for the rest to be sent; then the writer goes on by itself.
WAIT_S = {"FINISHED": 20.0, "FAILED": 10.0, "KILLED": 3.0}
# What is kept here while the pipe, of 64 KB, is full.
_MOST_KEPT_BYTES = 2**20
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
    run_id: names the record, from its start; not MLflow's own, which comes late. None when off.
    """

    def __init__(self, on: bool, console: Console) -> None:
        self.run_id: str | None = None
        self._on = on
        self._console = console
        self._writer: subprocess.Popen[bytes] | None = None
        self._server = ""
        self._unsent = self._heard = b""
        self._lost = 0
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
    ) -> None:
        """Begin the record of `run_id`, or a new one; when `resumed`, continue it.

        name: of the run, and of the experiment where $MLFLOW_EXPERIMENT_NAME names no other.
        recipe: resolved; its keys become parameters. tags: by their names after "parityline.".
        """
        if not self._on:
            return
        self.run_id = run_id or uuid.uuid4().hex
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._server = without_credentials(uri) if uri else "the working directory"
        try:
            self._writer = _start_writer()
        except OSError as error:
            self._warn(f"MLflow's process cannot be started: {error}; the run is not recorded")
            return
        self._say(f"MLflow run {name} in {self._server}" + ("" if uri else " (mlflow ui)"))
        tags = {**tags, "resumed": str(resumed).lower()}
        self._send(
            "start", name=name, experiment=name, run_id=self.run_id, resumed=resumed,
            params=flat_params(recipe), tags=source_tags(tags),
        )  # fmt: skip

    def epoch(self, record: Epoch, seconds: float | None = None) -> None:
        """Add a point to each curve. seconds: that the epoch took."""
        figures = {**record.model_dump(exclude={"epoch"}), "seconds": seconds}
        self._send("metrics", metrics=curve_points(figures), step=record.epoch)

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
        self._send("tags", tags={"parityline.bundle": manifest.reference})
        self._send("bundle", path=str(path.absolute()))

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
            self._send("tags", tags={"parityline.error": line[:_ERROR_LENGTH]})
        self._send("end", state=state)
        # Who interrupts this wait means the wait.
        with contextlib.suppress(KeyboardInterrupt, Interrupted):
            self._wait(WAIT_S[state])
        if self._writer is not None:
            pid = self._writer.pid
            self._warn(f"{self._server} has not taken all yet; process {pid} goes on with it")
            self._close()

    def _send(self, kind: str, **content: Any) -> None:
        if self._writer is None:
            return
        message = {"kind": kind, "time_ms": time.time_ns() // 10**6, **content}
        line = json.dumps(message).encode() + b"\n"
        # Without its end a run would pass for killed.
        if len(self._unsent) + len(line) <= _MOST_KEPT_BYTES or kind == "end":
            self._unsent += line
        else:
            self._lost += 1
        self._push()
        self._listen()

    def _push(self) -> None:
        """Write what the pipe takes."""
        assert self._writer is not None and self._writer.stdin is not None
        # That the writer is gone is heard, with what it said before.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                sent = os.write(self._writer.stdin.fileno(), self._unsent)
                self._unsent = self._unsent[sent:]

    def _listen(self) -> None:
        """Hear what the writer has said, if anything; after its last word it is gone."""
        assert self._writer is not None and self._writer.stdout is not None
        gone = False
        try:
            while not gone:
                said = os.read(self._writer.stdout.fileno(), 2**16)
                self._heard += said
                gone = not said
        except BlockingIOError:
            pass
        *lines, self._heard = self._heard.split(b"\n")
        for answer in map(json.loads, lines):
            self._take(answer["kind"], answer["value"])
        if gone and self._writer is not None:
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
            if self._lost:
                self._warn(f"{self._lost} messages are not in the record: they came too fast")
            elif self._warned:
                self._say("the record is complete after all")
            if self._page is not None:
                self._say(self._page)
            self._close()

    def _wait(self, seconds: float) -> None:
        """Push and listen until the writer is done."""
        deadline = time.monotonic() + seconds
        with self._progress():
            while self._writer is not None and (left := deadline - time.monotonic()) > 0:
                assert self._writer.stdin is not None and self._writer.stdout is not None
                poll = select.poll()
                poll.register(self._writer.stdout, select.POLLIN)
                if self._unsent:
                    poll.register(self._writer.stdin, select.POLLOUT)
                poll.poll(1000 * left)
                self._push()
                self._listen()

    def _progress(self) -> contextlib.AbstractContextManager[object]:
        if self._writer is None or not self._console.is_terminal:
            return contextlib.nullcontext()
        return self._console.status("tracking: sending the rest to MLflow")

    def _close(self) -> None:
        """Part with the writer, which ends by itself."""
        assert self._writer is not None
        assert self._writer.stdin is not None and self._writer.stdout is not None
        self._writer.stdin.close()
        self._writer.stdout.close()
        self._writer.poll()
        self._writer = None

    def _warn(self, line: str) -> None:
        """Once: whatever follows from a fault is not another."""
        if not self._warned:
            self._warned = True
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(f"tracking: {line}", highlight=False, markup=False, soft_wrap=True)


def _start_writer() -> subprocess.Popen[bytes]:
    """The process, in a session of its own: a Ctrl-C in the terminal does not reach it."""
    if sys.platform == "win32":
        raise OSError("it needs Linux or macOS")
    process = subprocess.Popen(
        # By its path, and nothing put before MLflow on the module path.
        [sys.executable, "-P", mlflow_writer.__file__, str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        bufsize=0, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return process
