"""`parityline tune` many times over, without importing it anew: a process that forks each.

python -m tests.forked

reads JSON lines, {"arguments": [...], "folder": ..., "log": ...}, and answers each with the process
id of a `parityline` of its own, whose workers are forks of it; {"wait": PID} is answered with that
one's exit status. Releasing is left out: a test of its own does it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest.mock import patch

import torch
from rich.console import Console

import parityline
from tests.tuned import RATES, Here, quick_recipe
from training.tuning import after, database, journal, search, tune, worker, workers


class Process:
    """Of `subprocess.Popen` what `training.tuning.workers` asks for, for a fork of this process."""

    def __init__(
        self, _command: list[str], *, stdin: int, stdout: int, stderr: BinaryIO, bufsize: int,
        start_new_session: bool, env: dict[str, str],
    ) -> None:  # fmt: skip
        assert stdin == stdout == subprocess.PIPE and bufsize == 0 and start_new_session
        (commands, send), (listen, answers) = os.pipe(), os.pipe()

        def work() -> None:
            os.setsid()
            for number, descriptor in enumerate((commands, answers, stderr.fileno())):
                os.dup2(descriptor, number)
            # Whoever holds the other end of a pipe keeps it open.
            os.closerange(3, 1024)
            os.environ.update(env)
            worker.main()

        self.pid = forked(work)
        os.close(commands)
        os.close(answers)
        self.stdin, self.stdout = open(send, "wb", 0), open(listen, "rb", 0)  # noqa: PTH123, SIM115
        self._status: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, -N where signal N ended it. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            else:
                time.sleep(0.01)
        return self._status

    def send_signal(self, number: int) -> None:
        """As subprocess.Popen's."""
        if self._status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As subprocess.Popen's."""
        self.send_signal(signal.SIGKILL)


def forked(work: Callable[[], None]) -> int:
    """`work` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    status: Any = 0
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        work()
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)
    raise AssertionError


def import_everything() -> None:
    """Much is imported where it is needed first: a small study needs all of it."""
    options = tune.Options(trials=12, workers=1, repeats=0)
    with (
        tempfile.TemporaryDirectory() as store,
        patch.object(tune, "Workers", Here),
        patch.object(after, "Workers", Here),
    ):
        recipe = quick_recipe(RATES, "train.epochs=1")
        tune.tune(recipe, Path(store), options, promote=False, console=Console(quiet=True))


def main() -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)
    # A killed worker's trial is seen to be one in a second instead of fifteen.
    journal.START_GRACE_S, search._STALE_LOOK_S = 0.5, 0.5
    database.HEARTBEAT_S, database.STALE_AFTER_S = 1, 3
    workers.subprocess = SimpleNamespace(
        Popen=Process, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    tune.run = lambda *_, **__: SimpleNamespace()
    import_everything()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:

            def work(order: dict[str, Any] = order) -> None:
                log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for number in (1, 2):
                    os.dup2(log, number)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(PARITYLINE_STORE=order["folder"], COLUMNS="200")
                sys.argv = ["parityline", "tune", *order["arguments"]]
                parityline.main()

            answer = forked(work)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
