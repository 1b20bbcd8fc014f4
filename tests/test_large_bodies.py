"""Bodies that are read past the parser: into their own place, or dropped where there is no room."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from serving.admission import Admission
from serving.exchange import Reply
from serving.reading import Reader
from tests.listening import (
    PATIENCE_S,
    Answered,
    Client,
    Gate,
    Listening,
    body_of,
    get,
    is_answer,
    listening,
)
from tests.listening import post as post_to
from tests.oip import body_of as tensor_body
from tests.oip import tensor

MANY = {"max_rows": 40_000, "max_queue_rows": 40_000, "max_batch_size": 4096}


@pytest.fixture
def server(digits: Predictor) -> Iterator[Listening]:
    with listening(digits, **MANY) as running:
        yield running


@pytest.fixture
def full(digits: Predictor) -> Iterator[tuple[Listening, Gate]]:
    """A server whose model holds on to a request of one row, behind which another waits; by its
    pace nobody else gets an answer in time."""
    gate = Gate(digits)
    with (
        listening(digits, run=gate, max_queue_ms=1.0, **MANY) as server,
        server.connect() as running,
        server.connect() as waiting,
    ):
        running.send(post_to("/predict", body_of(digits)))
        server.wait_until(lambda: gate.rows == 1)
        waiting.send(post_to("/predict", body_of(digits)))
        server.wait_until(lambda: server.worker.model.batcher.queued_rows == 1)
        yield server, gate
        gate.go.set()
        assert is_answer(running.read(), digits) and is_answer(waiting.read(), digits)


def raw_of(digits: Predictor, rows: int, first: int = 0) -> np.ndarray:
    return digits.golden.raw[np.arange(first, first + rows) % len(digits.golden.raw)]


def request(digits: Predictor, rows: int, first: int = 0, *headers: str, path: str = "") -> bytes:
    body, length = tensor_body(tensor("images", raw_of(digits, rows, first), "UINT8"))
    path = path or f"/v2/models/{digits.manifest.name}/infer"
    return post_to(path, body, f"Inference-Header-Content-Length: {length}", *headers)


def is_the_answer(answer: Answered, digits: Predictor, rows: int, first: int = 0) -> bool:
    assert answer.status == 200, answer
    length = int(answer.headers["inference-header-content-length"])
    result = InferenceServerClient.parse_response_body(answer.body, header_length=length)
    found = result.as_numpy("probabilities")
    _, expected = digits.run(raw_of(digits, rows, first))
    return bool((found == expected).all())


# 64 bytes a row: from what the parser sees whole to what has its place made larger twice.
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.sampled_from([1, 255, 260, 700, 4000]), min_size=1, max_size=4),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_however_it_comes_a_large_body_has_its_answer_and_so_has_what_follows(
    server: Listening, digits: Predictor, sizes: list[int], cuts: list[float]
) -> None:
    stream = b"".join(request(digits, rows, first) for first, rows in enumerate(sizes))
    ends = sorted(int(cut * len(stream)) for cut in cuts)
    with server.connect() as client:
        for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
            client.send(stream[start:end])
        for first, rows in enumerate(sizes):
            assert is_the_answer(client.read(), digits, rows, first)
    server.wait_until_idle()


def test_a_body_larger_than_what_is_set_aside_at_first(
    server: Listening, digits: Predictor
) -> None:
    rows = 39_000
    whole = request(digits, rows)
    with server.connect() as client:
        client.send(whole[:1000])
        server.wait_until(lambda: server.worker.held_bytes > 0)
        (connection,) = server.connections
        # Of what was only announced little is set aside.
        client.send(whole[1000:50_000])
        server.wait_until(lambda: server.worker.held_bytes > 45_000)
        assert sum(map(len, connection.cycle.chunks)) <= 2**20 + 2**14 < len(whole)
        client.send(whole[50_000:])
        assert is_the_answer(client.read(), digits, rows)
        assert is_answer(client.ask(post_to("/predict", body_of(digits))), digits)
    server.wait_until_idle()


def test_what_is_only_announced_takes_no_memory_and_what_was_answered_keeps_none(
    server: Listening, digits: Predictor
) -> None:
    head = request(digits, 39_000)[:20_000]
    before = psutil.Process().memory_info().rss
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(100)]
        for client in clients:
            client.send(head)
        server.wait_until(lambda: sum(bool(c.large_left) for c in server.connections) == 100)
        assert server.worker.held_bytes < 100 * len(head)
        assert psutil.Process().memory_info().rss - before < 60 * 2**20
    with server.connect() as client:
        assert is_the_answer(client.ask(request(digits, 3000)), digits, 3000)
        server.wait_until(lambda: len(server.connections) == 1)
        (connection,) = server.connections
        reader = connection.transport.get_protocol()
        assert isinstance(reader, Reader) and reader._place.obj == b""
    server.wait_until_idle()


def test_large_json_and_compressed_bodies_are_read_too(
    server: Listening, digits: Predictor
) -> None:
    rows = raw_of(digits, 300)
    body = json.dumps({"instances": rows[:, 0].tolist()}).encode()
    noise = np.random.default_rng(0).integers(0, 17, rows.shape, dtype=np.uint8)
    packed = gzip.compress(json.dumps({"instances": noise[:, 0].tolist()}).encode(), 1)
    assert len(packed) > 2**14 < len(body)
    with server.connect() as client:
        answers = [
            client.ask(post_to("/predict", body)),
            client.ask(post_to("/predict", packed, "Content-Encoding: gzip")),
        ]
    for answer, raw in zip(answers, (rows, noise), strict=True):
        assert answer.status == 200
        found = [
            list(row["probabilities"].values()) for row in json.loads(answer.body)["predictions"]
        ]
        assert (np.array(found, dtype=np.float32) == digits.run(raw)[1]).all()


def test_what_is_wrong_with_a_large_body_is_said_and_the_connection_goes_on(
    server: Listening, digits: Predictor
) -> None:
    with server.connect() as client:
        bad = request(digits, 1000).replace(b'"images"', b'"pixels"')
        answer = client.ask(bad)
        assert answer.status == 400 and "images" in answer.error
        assert is_the_answer(client.ask(request(digits, 900)), digits, 900)
        assert client.ask(request(digits, 900, path="/v2/models/other/infer")).status == 404
        assert is_the_answer(client.ask(request(digits, 900)), digits, 900)


def test_of_a_large_body_that_is_refused_nothing_is_held_and_the_next_request_is_seen(
    full: tuple[Listening, Gate], digits: Predictor
) -> None:
    server, gate = full
    held = server.worker.held_bytes
    whole = request(digits, 30_000)
    with server.connect() as client:
        client.send(whole[:60_000])
        server.wait_until(lambda: any(c.large_left for c in server.connections))
        assert server.worker.held_bytes == held
        # It is answered when its client has sent it, and hears.
        client.send(whole[60_000:] + get("/v2/health/live"))
        answer = client.read()
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        assert "would wait" in answer.error and "connection" not in answer.headers
        assert client.read().status == 200
        assert server.worker.metrics.counts.shed == {"wait": 1}
        gate.go.set()
        server.wait_until(lambda: server.worker.model.pending == 0)
        assert is_the_answer(client.ask(whole), digits, 30_000)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_however_it_comes_a_body_that_is_dropped_ends_where_it_ends(
    full: tuple[Listening, Gate], digits: Predictor, data: st.DataObject
) -> None:
    server, _ = full
    rows = data.draw(st.sampled_from([257, 600, 8000]))
    stream = request(digits, rows) + get("/v2/health/live") + request(digits, rows, 1)
    ends = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    with server.connect() as client:
        for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
            client.send(stream[start:end])
        assert [client.read().status for _ in range(3)] == [503, 200, 503]


def test_a_client_that_leaves_or_is_slow_while_its_body_is_dropped(
    full: tuple[Listening, Gate], digits: Predictor
) -> None:
    server, _ = full
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with server.connect() as client:
            client.send(request(digits, 30_000)[:200_000])
            server.wait_until(lambda: any(c.large_left for c in server.connections))
    server.wait_until(lambda: len(server.connections) == 2)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    with server.connect() as client:
        client.send(request(digits, 30_000)[:200_000])
        server.wait_until(lambda: any(c.large_left for c in server.connections))
        (slow,) = (connection for connection in server.connections if connection.large_left)
        server.wait_until(lambda: slow.cycle.came > 199_000)
        slow._deadline = 0.0
        assert client.read().status == 408


def test_the_rest_of_a_body_that_is_refused_for_its_size_is_not_the_next_ones_place(
    digits: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a form, which is the app's, while more is read."""
    gate = Gate(digits)
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    part += encode_png(digits.golden.raw[0]) + b"\r\n--x--\r\n"
    form = post_to("/predict/image", part, "Content-Type: multipart/form-data; boundary=x")
    refused, there = threading.Event(), threading.Event()
    look = Admission.refuse_more

    def look_slowly(self: Admission) -> Reply | None:
        found = look(self)
        if found is not None:
            refused.set()
            assert there.wait(PATIENCE_S)
        return found

    monkeypatch.setattr(Admission, "refuse_more", look_slowly)
    with (
        listening(digits, run=gate, max_queue_bytes=400_000, **MANY) as server,
        server.connect() as client,
    ):
        large = request(digits, 8000)
        client.send(form + large[:3000])
        server.wait_until(lambda: gate.rows == 1)
        client.send(large[3000:420_000])
        assert refused.wait(PATIENCE_S)
        client.send(large[420_000:])
        there.set()
        (connection,) = server.connections
        server.wait_until(lambda: connection.cycle.complete)
        gate.go.set()
        assert [client.read().status for _ in range(2)] == [200, 503]
        for _ in range(2):
            assert is_the_answer(client.ask(request(digits, 900, 5)), digits, 900, 5)


def test_behind_a_request_that_took_too_long_no_body_is_kept(digits: Predictor) -> None:
    gate = Gate(digits)
    with listening(digits, run=gate, request_timeout_s=0.3, **MANY) as server:
        with server.connect() as client:
            whole = request(digits, 39_000)
            client.send(post_to("/predict", body_of(digits)) + whole[:2000])
            server.wait_until(
                lambda: any(c._lingered_bytes is not None for c in server.connections)
            )
            (connection,) = server.connections
            client.send(whole[2000:1_500_000])
            server.wait_until(lambda: connection._lingered_bytes > 1_400_000)
            assert server.worker.held_bytes == 0 and not connection.cycle.chunks
        gate.go.set()
        server.wait_until_idle()


def test_a_body_that_its_client_offers_first_is_asked_for_all_the_same(
    full: tuple[Listening, Gate], digits: Predictor
) -> None:
    """Its answer is what it would have been without."""
    server, gate = full
    whole = request(digits, 900, 0, "Expect: 100-continue")
    with server.connect() as client:
        head, _, body = whole.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.read().status == 100
        gate.go.set()
        server.wait_until(lambda: server.worker.model.pending == 0)
        assert is_the_answer(client.ask(body), digits, 900)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_over_tls_bodies_are_kept_and_dropped_by_the_same_rules(
    digits: Predictor, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
         "-out", certificate, "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=certificate)

    def connect(server: Listening) -> Client:
        client = server.connect()
        client.socket = trust.wrap_socket(client.socket, server_hostname="localhost")
        return client

    gate = Gate(digits)
    tls = {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}
    with (
        listening(digits, run=gate, server_options=tls, max_queue_ms=1.0, **MANY) as server,
        connect(server) as running,
        connect(server) as waiting,
        connect(server) as client,
    ):
        running.send(post_to("/predict", body_of(digits)))
        server.wait_until(lambda: gate.rows == 1)
        waiting.send(post_to("/predict", body_of(digits)))
        server.wait_until(lambda: server.worker.model.batcher.queued_rows == 1)
        client.send(request(digits, 30_000) + get("/v2/health/live"))
        assert [client.read().status for _ in range(2)] == [503, 200]
        gate.go.set()
        assert is_answer(running.read(), digits) and is_answer(waiting.read(), digits)
        assert is_the_answer(client.ask(request(digits, 3000)), digits, 3000)
