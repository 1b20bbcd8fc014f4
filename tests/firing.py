"""Raw HTTP callers that load a running service, and what its processes hold meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.conftest import Server


@dataclass(frozen=True)
class Answered:
    """headers: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


def framed(path: str, body: bytes = b"", method: str = "POST", **headers: object) -> bytes:
    """A request as bytes; `_` in a header's name stands for `-`."""
    fields = {"host": "test", "content-length": len(body), **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> Answered:
    """Raises IncompleteReadError or ConnectionError where the connection ends before."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in head[1:] if line]
    headers = {name.lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answered(int(head[0].split()[1]), headers, body)


def as_binary(name: str, row: int, picture: np.ndarray) -> bytes:
    """A request of the inference protocol. picture: uint8 [C, H, W]; row: its id."""
    tensor = {
        "name": "images",
        "shape": [1, *picture.shape],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": picture.size},
    }
    wanted = {"name": "probabilities", "parameters": {"binary_data": True}}
    document = {"id": str(row), "inputs": [tensor], "outputs": [wanted]}
    header = json.dumps(document).encode()
    return framed(
        f"/v2/models/{name}/infer",
        header + picture.tobytes(),
        inference_header_content_length=len(header),
    )


def as_json(pictures: np.ndarray) -> bytes:
    """A request to /predict. pictures: uint8 [N, 1, H, W]."""
    return framed("/predict", json.dumps({"instances": pictures[:, 0].tolist()}).encode())


def read_probabilities(answered: Answered) -> tuple[str, np.ndarray]:
    """NAME@VERSION and the first row, float32 [K], of an answer to either protocol."""
    length = answered.headers.get("inference-header-content-length")
    if length is not None:
        head = json.loads(answered.body[: int(length)])
        row = np.frombuffer(answered.body, np.float32, offset=int(length))
        return f"{head['model_name']}@{head['model_version']}", row
    document = json.loads(answered.body)
    shown = document["predictions"][0]["probabilities"].values()
    return document["model"], np.array(list(shown), dtype=np.float64).astype(np.float32)


class Caller:
    """One connection after another, each kept as long as the service keeps it."""

    def __init__(self, server: Server) -> None:
        self._port = httpx.URL(server.url).port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answered:
        """Raises IncompleteReadError or OSError where the connection breaks."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            answered = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            raise
        if answered.headers.get("connection") == "close":
            self.close()
        return answered

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def ask_all(
    server: Server, requests: Sequence[bytes], *, callers: int, timeout_s: float = 60
) -> list[Answered]:
    """The answers in the order of the requests, `callers` of which are under way at any time."""
    numbered = iter(enumerate(requests))
    answers: dict[int, Answered] = {}

    async def call() -> None:
        caller = Caller(server)
        for index, request in numbered:
            answers[index] = await caller.ask(request)
        caller.close()

    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*(call() for _ in range(callers)))
    return [answers[index] for index in range(len(requests))]


@dataclass(frozen=True)
class Shot:
    """One request of `Fire`. status: 0 where the connection broke. Times: monotonic."""

    row: int
    began: float
    ended: float
    status: int
    model: str = ""
    probabilities: np.ndarray | None = None


@dataclass
class Fire:
    """Callers in a thread that ask for one picture after another, by either protocol in turn."""

    server: Server
    name: str
    pictures: np.ndarray
    callers: int = 8
    pause_s: float = 0.01
    shots: list[Shot] = field(default_factory=list)
    _stopping: bool = False

    def stop(self) -> None:
        """Each caller still gets the answer that it waits for."""
        self._stopping = True

    def wait_for(self, count: int, seconds: float = 60) -> None:
        """Until so many more requests have been answered with 200."""
        known = len(self.shots)
        wait_until(lambda: sum(s.status == 200 for s in self.shots[known:]) >= count, seconds)

    def failed(self) -> list[Shot]:
        return [shot for shot in self.shots if shot.status != 200]

    async def _call(self, caller: Caller, number: int) -> None:
        while not self._stopping:
            row = number % len(self.pictures)
            picture = self.pictures[row]
            request = as_binary(self.name, row, picture) if number % 2 else as_json(picture[None])
            began = time.monotonic()
            try:
                answered = await caller.ask(request)
            except (OSError, asyncio.IncompleteReadError):
                self.shots.append(Shot(row, began, time.monotonic(), 0))
                await asyncio.sleep(0.1)
            else:
                ended = time.monotonic()
                read = read_probabilities(answered) if answered.status == 200 else ("", None)
                self.shots.append(Shot(row, began, ended, answered.status, *read))
                await asyncio.sleep(self.pause_s)
            number += 1
        caller.close()

    async def _all(self) -> None:
        await asyncio.gather(
            *(self._call(Caller(self.server), 101 * index) for index in range(self.callers))
        )

    def run(self) -> None:
        """Until `stop`."""
        asyncio.run(self._all())


@contextmanager
def firing(server: Server, name: str, pictures: np.ndarray, **options: Any) -> Iterator[Fire]:
    """A `Fire` that runs meanwhile and has every answer afterwards."""
    fire = Fire(server, name, pictures, **options)
    thread = threading.Thread(target=fire.run)
    thread.start()
    try:
        yield fire
    finally:
        fire.stop()
        thread.join(60)
        assert not thread.is_alive(), "a request hangs"


def check_bits(shots: Sequence[Shot], expected: dict[str, np.ndarray]) -> None:
    """expected: by NAME@VERSION the probabilities of all pictures, float32 [N, K]."""
    for shot in shots:
        if shot.probabilities is not None:
            np.testing.assert_array_equal(shot.probabilities, expected[shot.model][shot.row])


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> float:
    """The seconds that it took; fails where it does not come true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"not within {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - began


def workers_of(server: Server) -> list[int]:
    """The processes that have reported to be ready, in order of their ids."""
    ready = []
    for children in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            directory = _run_directory(int(pid))
            if directory is not None and (directory / "workers" / f"{pid}.json").exists():
                ready.append(int(pid))
    return sorted(ready)


def _run_directory(pid: int) -> Path | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return None
    prefix = "PARITYLINE_RUN_DIRECTORY="
    found = [line.removeprefix(prefix) for line in environment if line.startswith(prefix)]
    return Path(found[0]) if found else None


def holdings(pid: int) -> tuple[int, int]:
    """Open file descriptors and threads of a process."""
    return tuple(len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for kind in ("fd", "task"))


def metrics_of(server: Server) -> dict[str, float]:
    """Samples by name and labels as they are written."""
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}
