"""The processes that work for a study: started, told what to do, listened to, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import training
from artifacts.devices import one_cuda_device
from training.tuning.plan import Plan
from training.tuning.storage import StudyError

# So many processes of one place may die without an answer; then it is not chance.
_MOST_DEATHS = 3
# How long a worker may take to put its trial back into the queue.
_GRACE_S = 15.0
_LAST_WORDS = 400
_ROOT = Path(training.__file__).parent.parent


@dataclass
class _Process:
    process: subprocess.Popen[bytes]
    log: Path
    heard: bytes = b""
    busy: bool = True  # until it has read its data
    deaths: int = 0


class Workers:
    """A context in which `count` processes work for the plan's study; leaving it ends them.

    `events` gives what they say as it comes: (index, {"event": ..., ...}). One that dies is
    replaced, and is heard of as {"event": "died"}.
    """

    def __init__(self, plan: Plan, count: int, devices: int) -> None:
        """devices: how many CUDA devices they share; 0 on CPU."""
        self._plan, self._devices = plan, devices
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Process] = {}
        self._count = count

    def __enter__(self) -> Workers:
        for index in range(self._count):
            self._start(index, deaths=0)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        for worker in self._workers.values():
            if worker.busy:
                # Its trial goes back into the queue.
                with contextlib.suppress(ProcessLookupError):
                    worker.process.send_signal(signal.SIGTERM)
            assert worker.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
        deadline = time.monotonic() + _GRACE_S
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._close(worker)
        self._selector.close()

    def wait_until_ready(self) -> None:
        """Until one of them has read its data. Raises StudyError where none can."""
        while not self.idle():
            for _ in self.events(1.0):
                pass

    def idle(self) -> list[int]:
        """Those that wait for a command."""
        return [index for index, worker in self._workers.items() if not worker.busy]

    def send(self, index: int, command: dict[str, Any]) -> None:
        """Give an idle worker something to do."""
        worker = self._workers[index]
        assert not worker.busy and worker.process.stdin is not None
        worker.busy = True
        # That it has died is heard.
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(json.dumps(command).encode() + b"\n")

    def events(self, wait_s: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """What is said within so many seconds; nothing after the first that come together.

        Raises StudyError with its reason where a worker cannot work, or dies again and again.
        """
        for key, _ in self._selector.select(wait_s):
            index: int = key.data
            worker = self._workers[index]
            said = os.read(key.fd, 2**16)
            *lines, worker.heard = (worker.heard + said).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "broken":
                    raise StudyError(event["reason"])
                if event["event"] in ("ready", "done"):
                    worker.busy, worker.deaths = False, 0
                yield index, event
            if not said:
                yield index, self._replace(index)

    def _start(self, index: int, deaths: int) -> None:
        self._plan.folder.mkdir(parents=True, exist_ok=True)
        log = self._plan.folder / f"worker-{index}.log"
        # The very code that this process runs, wherever it was started.
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONWARNINGS": "ignore",
        }
        if self._devices:
            environment.update(one_cuda_device(index))
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "training.tuning.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                # A Ctrl-C in the terminal goes to the one who started it, which then ends them.
                start_new_session=True, env=environment,
            )  # fmt: skip
        worker = _Process(process, log, deaths=deaths)
        self._workers[index] = worker
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, index)
        worker.busy = False
        self.send(index, {"plan": self._plan.model_dump(mode="json")})

    def _replace(self, index: int) -> dict[str, Any]:
        worker = self._workers[index]
        status = worker.process.wait()
        self._close(worker)
        name = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if worker.deaths + 1 >= _MOST_DEATHS:
            words = worker.log.read_text(errors="replace").strip()[-_LAST_WORDS:]
            raise StudyError(
                f"worker {index} has died {_MOST_DEATHS} times in a row, the last time with {name}"
                f"{f': {words}' if words else ''}"
            )
        self._start(index, worker.deaths + 1)
        return {"event": "died", "status": name}

    def _close(self, worker: _Process) -> None:
        assert worker.process.stdin is not None and worker.process.stdout is not None
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.process.stdout)
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
        worker.process.stdout.close()
