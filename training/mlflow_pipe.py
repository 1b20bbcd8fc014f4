"""The pipe to the process that writes into MLflow: neither its start nor a message ever waits."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

# What is kept here while the pipe, of 64 KB, is full: 500 trials of 50 epochs are 8 MB.
_MOST_KEPT_BYTES = 2**24
# The writer is of this very code; its folder is off the module path before MLflow is looked for.
_WRITER = """
import sys
sys.path.insert(0, sys.argv.pop())
from training.mlflow_writer import main
del sys.path[0]
main()
"""


class Pipe:
    """A new process and what it has not taken yet. Raises OSError where it cannot be started.

    lost: how many messages there was no room for. gone: whether the process has closed its end.
    """

    def __init__(self) -> None:
        self.process = _start_writer()
        assert self.process.stdin is not None and self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        for end in (self._in, self._out):
            os.set_blocking(end.fileno(), False)
        self._unsent, self._heard = bytearray(), b""
        self.lost = 0
        self.gone = False

    def send(self, message: dict[str, Any]) -> None:
        """Pass it on; what the pipe does not take is kept for the next time."""
        line = json.dumps(message).encode() + b"\n"
        # Without its end a run would pass for killed.
        if len(self._unsent) + len(line) <= _MOST_KEPT_BYTES or message["kind"] == "end":
            self._unsent += line
        else:
            self.lost += 1
        self._push()

    def listen(self) -> list[dict[str, Any]]:
        """What the process has said since, if anything; after its last word it is gone."""
        with contextlib.suppress(BlockingIOError):
            while not self.gone:
                said = os.read(self._out.fileno(), 2**16)
                self._heard += said
                self.gone = not said
        *lines, self._heard = self._heard.split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self, seconds: float) -> None:
        """Until the process says or takes something, and pass on what it takes."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if self._unsent:
            poll.register(self._in, select.POLLOUT)
        poll.poll(1000 * seconds)
        self._push()

    def close(self) -> None:
        """Part with the process, which ends by itself."""
        self._in.close()
        self._out.close()
        self.process.poll()

    def _push(self) -> None:
        # That the process is gone is heard, with what it said before.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                sent = os.write(self._in.fileno(), self._unsent)
                del self._unsent[:sent]


def _start_writer() -> subprocess.Popen[bytes]:
    """The process, in a session of its own: a Ctrl-C in the terminal does not reach it."""
    if sys.platform == "win32":
        raise OSError("it needs Linux or macOS")
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _WRITER, str(os.getpid()), str(Path(__file__).parents[1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        bufsize=0, start_new_session=True,
    )  # fmt: skip
