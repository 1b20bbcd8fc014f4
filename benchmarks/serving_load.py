"""Two load generators: wrk for throughput and latency, and an open loop that checks each answer.

wrk asks as fast as it is answered and reads no answer's content. The open loop sends whatever comes
back, at random moments as independent callers do (a Poisson process), each on any idle connection;
latency counts from the moment at which a request was due, so that a slow server cannot slow down
its own load (coordinated omission).
"""

from __future__ import annotations

import asyncio
import collections
import json
import multiprocessing
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

from benchmarks.peers.wires import Work

# Bodies as files, so that any bytes will do; each connection's next request is the next body.
_SCRIPT = """
local requests = {}
local turn = 0
function init(args)
  local headers = {}
  for name, value in string.gmatch(args[3], "([^:\\n]+):([^\\n]*)") do headers[name] = value end
  for i = 1, tonumber(args[2]) do
    local file = io.open(args[1] .. "/" .. i, "rb")
    requests[i] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency, rates)
  io.write(string.format(
    '\\n{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,"broken":%d,"refused":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.errors.status))
end
"""
_ANSWERED_S = 30.0
# wrk leaves without waiting for its last answers: the next run is not to pay for them.
_DRAIN_S = 1.0


@dataclass(frozen=True)
class Throughput:
    """What wrk saw: 2xx and 3xx a second, milliseconds, and answers that were none or others."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def wrk(port: int, work: Work, *, connections: int, seconds: float) -> Throughput:
    """One thread of wrk, the work's bodies in rotation."""
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "post.lua"
        script.write_text(_SCRIPT)
        for number, body in enumerate(work.bodies, 1):
            (Path(temporary) / str(number)).write_bytes(body)
        headers = "\n".join(f"{name}:{value}" for name, value in work.headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout"]
        command += ["30s", "-s", str(script), f"http://127.0.0.1:{port}{work.path}", "--"]
        command += [temporary, str(len(work.bodies)), headers]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    time.sleep(_DRAIN_S)
    found = json.loads(told.strip().splitlines()[-1])
    return Throughput(
        requests=found["requests"],
        requests_per_s=(found["requests"] - found["refused"]) / found["us"] * 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        errors=found["broken"] + found["refused"],
    )


def echo(seconds: float) -> tuple[float, float]:
    """p50 and p99, in ms, of a byte to another process and back over loopback: what waking up a
    process costs here, before any server does anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = multiprocessing.get_context("fork").Process(target=_send_back, args=(listener,))
        other.start()
        found = []
        with socket.create_connection(listener.getsockname()) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                connection.send(b"x")
                connection.recv(1)
                found.append(time.perf_counter() - began)
        other.join()
    p50, p99 = np.percentile(found, (50, 99)) * 1e3
    return float(p50), float(p99)


def _send_back(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while byte := connection.recv(1):
            connection.send(byte)


@dataclass
class Outcome:
    """Of each request: seconds from when it was due, and from when it was sent, to its answer.

    accepted, refused: rows of (from due, from sent) of the 200s, and of the 429s and 503s.
    late: from due to sent. statuses: how many of each. wrong: 200s whose body is not the right one.
    lost: requests without any answer. sent_s, answered_s: from the beginning to the last one.
    """

    accepted: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: int = 0
    lost: int = 0
    sent_s: float = 0.0
    answered_s: float = 0.0

    @property
    def sent(self) -> int:
        """How many requests were sent."""
        return len(self.late)


def percentile_ms(seconds: list[tuple[float, float]], percent: float, since: int) -> float:
    """Milliseconds; since 0: from when the requests were due, 1: from when they were sent."""
    return float(np.percentile([pair[since] for pair in seconds], percent) * 1e3) if seconds else 0


def open_loop(
    port: int, work: Work, answers: list[bytes], *, rate: float, seconds: float, connections: int
) -> Outcome:
    """Send `rate` requests a second on average, on so many connections, for so long.

    A request that is due while no connection is idle waits for one; that wait counts.
    """
    return uvloop.run(_Load(port, work, answers).open(rate, seconds, connections))


def closed_loop(
    port: int, work: Work, answers: list[bytes], *, seconds: float, connections: int
) -> Outcome:
    """On each connection the next request as soon as the last is answered."""
    return uvloop.run(_Load(port, work, answers).closed(seconds, connections))


class _Load:
    """One run: what waits for a connection, which connections are idle, what came back."""

    def __init__(self, port: int, work: Work, answers: list[bytes]) -> None:
        self.port = port
        self.requests = [_encode(work, body) for body in work.bodies]
        self.answers = answers
        self.outcome = Outcome()
        self.random = np.random.default_rng(1)
        self.idle: list[_Connection] = []
        self.due: collections.deque[float] = collections.deque()
        self.in_flight = 0
        self.began = time.perf_counter()
        self.until = float("inf")
        self.keep_busy = False
        self.opening: set[asyncio.Task[None]] = set()

    async def open(self, rate: float, seconds: float, connections: int) -> Outcome:
        await asyncio.gather(*(self.connect() for _ in range(connections)))
        self.began = time.perf_counter()
        gaps = np.random.default_rng(0).exponential(1 / rate, size=max(1, round(rate * seconds)))
        moments = collections.deque((self.began + np.cumsum(gaps)).tolist())
        while moments:
            while moments and moments[0] <= time.perf_counter():
                self.due.append(moments.popleft())
            self.send_due()
            if moments:
                await asyncio.sleep(max(0.0, moments[0] - time.perf_counter()))
        return await self.finish()

    async def closed(self, seconds: float, connections: int) -> Outcome:
        self.keep_busy, self.until = True, self.began + seconds
        await asyncio.gather(*(self.connect() for _ in range(connections)))
        await asyncio.sleep(seconds)
        return await self.finish()

    async def finish(self) -> Outcome:
        """Wait for the answers that are due; what never came is lost."""
        deadline = time.perf_counter() + _ANSWERED_S
        while (self.due or self.in_flight) and time.perf_counter() < deadline:
            self.send_due()
            await asyncio.sleep(0.005)
        self.outcome.lost += self.in_flight + len(self.due)
        self.due.clear()
        self.until = 0.0
        for task in self.opening:
            task.cancel()
        for connection in self.idle:
            connection.transport.close()
        return self.outcome

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
        except OSError:
            # Its request stays due; another connection takes it, or it is lost in the end.
            await asyncio.sleep(0.1)

    def became_idle(self, connection: _Connection) -> None:
        self.idle.append(connection)
        if self.keep_busy and time.perf_counter() < self.until:
            self.due.append(time.perf_counter())
        self.send_due()

    def closed_by_server(self, connection: _Connection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        if time.perf_counter() < self.until:
            task = asyncio.ensure_future(self.connect())
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    def send_due(self) -> None:
        while self.due and self.idle:
            # Any of them: the one that was answered last may be the one that was refused.
            place = self.random.integers(len(self.idle))
            self.idle[place], self.idle[-1] = self.idle[-1], self.idle[place]
            connection, due = self.idle.pop(), self.due.popleft()
            which = self.outcome.sent % len(self.requests)
            now = time.perf_counter()
            self.outcome.late.append(now - due)
            self.outcome.sent_s = now - self.began
            self.in_flight += 1
            connection.send(self.requests[which], which, due, now)

    def answered(self, status: int, body: bytes, which: int, due: float, sent: float) -> None:
        now = time.perf_counter()
        self.in_flight -= 1
        self.outcome.answered_s = now - self.began
        self.outcome.statuses[status] += 1
        if status == 200:
            self.outcome.accepted.append((now - due, now - sent))
            self.outcome.wrong += body != self.answers[which]
        elif status in (429, 503):
            self.outcome.refused.append((now - due, now - sent))


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on its way."""

    transport: asyncio.Transport

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.buffer = bytearray()
        self.asked: tuple[int, float, float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.load.became_idle(self)

    def send(self, request: bytes, which: int, due: float, sent: float) -> None:
        self.asked = (which, due, sent)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, blank, rest = self.buffer.partition(b"\r\n\r\n")
        if not blank or self.asked is None:
            return
        lower = bytes(head).lower()
        length = int(lower.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        asked, self.asked = self.asked, None
        self.buffer.clear()
        self.load.answered(int(lower[9:12]), bytes(rest), *asked)
        if b"\r\nconnection: close" in lower:
            self.transport.close()
        else:
            self.load.became_idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self.asked is not None:
            self.asked = None
            self.load.in_flight -= 1
            self.load.outcome.lost += 1
        self.load.closed_by_server(self)


def _encode(work: Work, body: bytes) -> bytes:
    headers = {"Host": "127.0.0.1", **work.headers, "Content-Length": str(len(body))}
    lines = [f"POST {work.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
