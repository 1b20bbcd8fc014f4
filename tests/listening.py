"""The service's own part of a server, in a thread of the test's process, and a client of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette

from artifacts.predictor import Predictor
from serving.admission import Admission
from serving.connection import Connection
from serving.lifecycle import _watch_connections
from serving.metrics import Metrics
from serving.pace import Pace
from serving.routes import build_app
from serving.served import Prepared
from serving.settings import Settings
from serving.tokens import Tokens
from serving.worker import Worker

# A busy machine gets this long for what takes milliseconds.
PATIENCE_S = 20.0
# Seconds a row: so slow that batches run in the model's thread, and so quick that they do not.
IN_THREAD_S, ON_LOOP_S = 0.003, 1e-6


class Gate:
    """The model, once it is let go."""

    def __init__(self, predictor: Predictor) -> None:
        self.go = threading.Event()
        self.rows = 0
        self._model = predictor.model

    def __call__(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.rows += len(raw)
        assert self.go.wait(PATIENCE_S)
        return self._model(raw)


@dataclass
class Listening:
    """A server that listens; worker is the loop's own, and to be read only."""

    port: int
    worker: Worker
    loop: asyncio.AbstractEventLoop
    connections: set[Connection]

    def connect(self) -> Client:
        return Client(self.port)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it has not come to that"
            time.sleep(0.005)

    def wait_until_idle(self) -> None:
        """Nothing is held of any request or connection."""
        worker = self.worker

        def idle() -> bool:
            held = worker.held_bytes, worker.model.pending, worker.metrics.counts.in_progress
            return not any(held) and not worker.model.batcher.queued_rows and not self.connections

        self.wait_until(idle)


@contextlib.contextmanager
def listening(
    predictor: Predictor,
    *,
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    tokens: Path | None = None,
    server_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Listening]:
    """run: instead of the model; it runs in the model's thread. server_options: of uvicorn."""
    pace = Pace([1], [IN_THREAD_S if run else ON_LOOP_S])
    prepared = Prepared(replace(predictor, model=run) if run else predictor, pace)
    started: list[tuple[Worker, asyncio.AbstractEventLoop]] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory() as counts:
            chosen = Settings(tokens=tokens, **settings)
            worker = Worker(prepared, chosen, Metrics(Path(counts)))
            app.state.worker = worker
            admission = Admission(worker, Tokens(tokens) if tokens else None)
            Connection.admission = admission
            started.append((worker, asyncio.get_running_loop()))
            watch = asyncio.create_task(_watch_connections(admission))
            yield
            assert not watch.done(), watch
            watch.cancel()
            await worker.close()

    config = uvicorn.Config(
        build_app(lifespan),
        http=Connection,
        loop="uvloop",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        **(server_options or {}),
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.005)
            worker, loop = started[0]
            port = listener.getsockname()[1]
            yield Listening(port, worker, loop, Connection.admission.connections)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@dataclass(frozen=True)
class Answered:
    """headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """Of a JSON error."""
        assert self.headers["content-type"] == "application/json"
        return str(json.loads(self.body)["error"])


class Client:
    """One connection; what it sends is up to the test."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self._rest = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, *, head_only: bool = False) -> Answered:
        """The next answer. Raises EOFError where the connection is closed instead."""
        while b"\r\n\r\n" not in self._rest:
            self._receive()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert first.startswith("HTTP/1.1 ")
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self._rest) < length:
            self._receive()
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answered(int(first.split(" ")[1]), headers, body)

    def ask(self, data: bytes) -> Answered:
        self.send(data)
        return self.read()

    def is_closed(self) -> bool:
        """Waits for the server's end of the connection; nothing may come before it."""
        try:
            return not self._rest and self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError(self._rest)
        self._rest += data


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


def body_of(predictor: Predictor, row: int = 0, rows: int = 1) -> bytes:
    """A request for these golden rows."""
    return json.dumps({"instances": predictor.golden.raw[row : row + rows, 0].tolist()}).encode()


def is_answer(answer: Answered, predictor: Predictor, row: int = 0) -> bool:
    """Whether it is the very answer to `body_of`."""
    assert answer.status == 200, answer
    (prediction,) = json.loads(answer.body)["predictions"]
    found = np.array(list(prediction["probabilities"].values()), dtype=np.float32)
    _, expected = predictor.run(predictor.golden.raw[row : row + 1])
    return bool((found == expected[0]).all())
