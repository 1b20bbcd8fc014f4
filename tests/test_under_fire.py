"""A real service of two workers under many, bad, broken and hostile requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from artifacts.predictor import Predictor
from tests.conftest import Server, start_server, stop_server, wait_until_ready
from tests.firing import (
    as_binary,
    as_json,
    ask_all,
    framed,
    holdings,
    metrics_of,
    read_probabilities,
    wait_until,
    workers_of,
)
from tests.scored import parts_of, score_file

# Runs in every Python process of the service before anything else: what it connects to and which
# names it looks up goes to a file. uvloop does both without Python, and tells no hook.
WATCH = """
import os, sys
def note(event, *details):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(f"{event} {details!r}\\n")
def hook(event, details):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        note(event, details[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        note(event, details[0])
sys.addaudithook(hook)
try:
    import uvloop
except ImportError:
    pass
else:
    def noted(name, method):
        def call(*given, **named):
            note(f"uvloop.{name}", given[1:], named)
            return method(*given, **named)
        return call
    names = "create_connection", "create_datagram_endpoint", "getaddrinfo", "sock_connect"
    for name in names:
        setattr(uvloop.Loop, name, noted(name, getattr(uvloop.Loop, name)))
note("started")
"""


@dataclass(frozen=True)
class Watched:
    """A service, the file of what it connected to, and one port where nobody should come."""

    server: Server
    file: Path
    trap: socket.socket


@pytest.fixture(scope="module")
def watched(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("fire")
    (folder / "sitecustomize.py").write_text(WATCH)
    file = folder / "connections"
    with socket.create_server(("127.0.0.1", 0)) as trap:
        server = start_server(
            folder / "log",
            PARITYLINE_STORE=str(store),
            PARITYLINE_BUNDLE="digits",
            PARITYLINE_WORKERS="2",
            PARITYLINE_READ_TIMEOUT_S="1",
            PARITYLINE_MAX_BODY_BYTES="1000000",
            PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            WATCHED=str(file),
        )
        try:
            wait_until_ready(server)
            wait_until(lambda: len(workers_of(server)) == 2)
            yield Watched(server, file, trap)
        finally:
            assert stop_server(server) == 0


@pytest.fixture(scope="module")
def service(watched: Watched) -> Server:
    return watched.server


def test_each_of_20000_concurrent_requests_gets_its_own_answer(
    service: Server, digits: Predictor, tmp_path: Path
) -> None:
    """Promises 2 and 5: unlike rows, both protocols, and the bits that the offline job writes."""
    pictures = np.random.default_rng(0).integers(0, 256, (20_000, 1, 8, 8), np.uint8)
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)
    np.savez(tmp_path / "pictures.npz", images=pictures)
    score_file(digits, tmp_path / "pictures.npz", tmp_path / "scores")
    table = parts_of(tmp_path / "scores")
    columns = [table[f"probability_{label}"].to_numpy() for label in digits.manifest.labels]
    expected = np.stack(columns, axis=1)
    name = digits.manifest.name
    requests = [
        as_binary(name, row, picture) if row % 2 else as_json(picture[None])
        for row, picture in enumerate(pictures)
    ]
    answers = asyncio.run(ask_all(service, requests, callers=64))
    assert {answered.status for answered in answers} == {200}
    read = [read_probabilities(answered) for answered in answers]
    assert {model for model, _ in read} == {digits.manifest.reference}
    np.testing.assert_array_equal(np.stack([row for _, row in read]), expected)
    ids = [answered.body.split(b'"id":"')[1].split(b'"')[0] for answered in answers[1::2]]
    assert ids == [str(row).encode() for row in range(1, len(requests), 2)]


def test_a_bad_row_among_good_ones_fails_alone(service: Server, digits: Predictor) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (2000, 1, 8, 8), np.uint8)
    _, expected = digits.run(pictures)
    requests = []
    for row, picture in enumerate(pictures):
        if row % 10 == 0:
            requests.append(framed("/predict", b'{"instances": [[[0, 1]]]}'))
        elif row % 10 == 1:
            requests.append(as_binary("digits", row, picture[:, :7]))
        else:
            requests.append(
                as_binary("digits", row, picture) if row % 2 else as_json(picture[None])
            )
    answers = asyncio.run(ask_all(service, requests, callers=32))
    for row, answered in enumerate(answers):
        if row % 10 < 2:
            assert answered.status == 400
            assert (b"instances[0]", b"images")[row % 10] in answered.body
        else:
            np.testing.assert_array_equal(read_probabilities(answered)[1], expected[row])


def abuse(server: Server) -> None:
    """Oversized, slow, half-closed, cut-off and given-up requests, a dozen of each at once."""
    address = ("127.0.0.1", httpx.URL(server.url).port)
    rows = json.dumps({"instances": [[[7] * 8] * 8] * 100}).encode()
    form = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    sent = {
        "oversized": framed("/predict", b" " * 2_000_000),
        "oversized in chunks": b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"10000\r\n%b\r\n" % (b" " * 65536) * 20,
        "slow head": b"POST /predict HTTP/1.1\r\nHost: x\r\nX: ",
        "slow body": framed("/predict", rows)[:-100],
        "slow body to the app": framed("/v2/repository/index", b" " * 900, **form)[:-100],
        "slow form": framed("/predict/image", part + b" " * 30_000, **form)[:-100],
        "endless head": b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000,
        "half-closed": framed("/predict", rows),
        "given up": framed("/predict", rows),
        "given up half-way": framed("/predict", rows)[:-5000],
        "pipelined and given up": framed("/predict", rows) * 8,
        "no HTTP": bytes(range(256)) * 16,
    }
    kept: list[tuple[str, socket.socket]] = []
    with contextlib.ExitStack() as stack:
        for kind, data in list(sent.items()) * 12:
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            # The service may have refused it before all is sent.
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                if kind == "half-closed":
                    connection.shutdown(socket.SHUT_WR)
            if "given up" in kind:
                connection.close()
            else:
                kept.append((kind, connection))
        for kind, connection in kept:
            assert is_ended(connection), f"{kind}: a connection is kept for ever"


def is_ended(connection: socket.socket, seconds: float = 30) -> bool:
    """Whether the service ends it, though a byte comes now and then."""
    deadline = time.monotonic() + seconds
    connection.settimeout(0.3)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < deadline:
            try:
                if not connection.recv(65536):
                    return True
            except TimeoutError:
                connection.sendall(b"x")
        return False
    return True


def test_broken_requests_leave_nothing_behind(service: Server) -> None:
    def state() -> tuple[list[tuple[int, int]], float, float, float]:
        found = metrics_of(service)
        gauges = (
            found["bentoml_service_request_in_progress"],
            found["parityline_queue_rows"],
            found["parityline_connections"],
        )
        return [holdings(pid) for pid in workers_of(service)], *gauges

    # The first time threads start and files are opened that stay; then all is as it was.
    abuse(service)
    # The connection that asks is one itself.
    wait_until(lambda: state()[1:] == (0, 0, 1))
    # Every worker has been asked for its metrics, which starts a thread.
    for _ in range(20):
        metrics_of(service)
    before = state()
    abuse(service)
    wait_until(lambda: state()[1:] == (0, 0, 1))
    pairs = lambda: zip(state()[0], before[0], strict=True)  # noqa: E731
    wait_until(lambda: all(now[0] <= then[0] and now[1] <= then[1] for now, then in pairs()))


def test_a_slow_sender_is_told_so(service: Server) -> None:
    for begun, place in (
        (b"POST /predict HTTP/1.1\r\nHost: x\r\n", b"the head"),
        (framed("/predict", b" " * 1000)[:-1], b"the body"),
    ):
        with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port), 30) as connection:
            connection.sendall(begun)
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ") and place in answer


def test_no_url_in_a_request_is_ever_looked_at(watched: Watched) -> None:
    """Promise 7: no connection to anywhere and no name looked up, on any route, in any place."""
    url = f"http://127.0.0.1:{watched.trap.getsockname()[1]}/picture.png"
    bodies: list[object] = []
    for text in (url, "http://parityline.invalid/x", "file:///etc/passwd", "s3://bucket/x"):
        encoded = base64.b64encode(text.encode()).decode()
        bodies += [text, {"url": text}, {"instances": text}, {"instances": [text]}]
        bodies += [{"instances": [{"url": text}]}, {"instances": [{"b64": text}]}]
        bodies += [{"instances": [{"b64": encoded}]}, {"images": text}, {"image": [text]}]
        tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [text]}
        bodies += [{"inputs": [tensor]}, {"inputs": [{**tensor, "name": text}]}]
        region = {"shared_memory_region": text, "shared_memory_byte_size": 64}
        bodies.append({"inputs": [{**tensor, "parameters": region}]})
    routes = ["/predict", "/predict/image", "/v2/models/digits/infer", "/v2/repository/index"]
    routes += ["/v2/repository/models/digits/load", "/v2/systemsharedmemory/region/x/register"]
    with watched.server.client() as client:
        for body in bodies:
            data = body if isinstance(body, str) else json.dumps(body)
            for route in routes:
                kinds = ("application/json", "text/uri-list", "image/png", "multipart/form-data")
                for kind in kinds:
                    headers = {"content-type": kind, "referer": url, "host": "parityline.invalid"}
                    assert client.post(route, content=data, headers=headers).status_code != 500
        files = {"files": (url, url.encode(), "text/uri-list")}
        assert client.post("/predict/image", files=files).status_code == 400
        assert client.get("/", headers={"host": "parityline.invalid"}).status_code == 200
    watched.trap.setblocking(False)
    with pytest.raises(BlockingIOError):
        watched.trap.accept()
    lines = watched.file.read_text().splitlines()
    # The starting process, its check, and two workers.
    assert lines.count("started ()") >= 4
    # The address to listen at is no name, and that of another worker is a file.
    others = {line for line in lines if "/neighbours/" not in line}
    assert others <= {"started ()", "socket.getaddrinfo ('127.0.0.1',)"}
