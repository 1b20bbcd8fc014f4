"""What one connection may cost: sizes, times, numbers; and nothing of it stays."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from tests.listening import Client, Gate, body_of, get, is_answer, listening, post

SLOW = "came too slowly"


@pytest.fixture
def gate(digits: Predictor) -> Iterator[Gate]:
    gate = Gate(digits)
    yield gate
    gate.go.set()


def send_all_the_while(client: Client, head: bytes, piece: bytes, count: int) -> None:
    """Send from a thread, as a client that reads nothing before it has sent all."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.send(head)
            for _ in range(count):
                client.send(piece)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("path", ["/predict", "/v2/repository/index"])
@pytest.mark.parametrize("way", ["declared", "chunked"])
def test_too_large_a_body_is_refused_so_that_its_sender_reads_it(
    digits: Predictor, path: str, way: str
) -> None:
    piece = bytes(100_000)
    with listening(digits, max_body_bytes=150_000) as server, server.connect() as client:
        if way == "declared":
            head = f"POST {path} HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n".encode()
        else:
            head = f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        # All of it goes out before the answer is looked at.
        client.send(head + piece * 50 + (b"" if way == "declared" else b"0\r\n\r\n"))
        answer = client.read()
        assert answer.status == 413 and "at most 150000 bytes" in answer.error
        assert answer.headers["connection"] == "close" and client.is_closed()
        server.wait_until_idle()


def test_an_inflated_body_is_limited_too(digits: Predictor) -> None:
    with listening(digits, max_body_bytes=150_000) as server, server.connect() as client:
        bomb = gzip.compress(bytes(10**8))
        answer = client.ask(post("/predict", bomb, "Content-Encoding: gzip"))
        assert answer.status == 413
        assert is_answer(client.ask(post("/predict", body_of(digits))), digits)


@pytest.mark.parametrize("piece", [1, 2, 1500])
def test_small_pieces_of_a_body_are_held_as_few_large_ones(digits: Predictor, piece: int) -> None:
    body = body_of(digits).ljust(60_000)
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    head = b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with listening(digits) as server, server.connect() as client:
        client.send(head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in pieces))
        server.wait_until(lambda: server.worker.held_bytes == len(body))
        (connection,) = server.connections
        assert len(connection.cycle.chunks) < 100
        client.send(b"0\r\n\r\n")
        assert is_answer(client.read(), digits)
        server.wait_until(lambda: server.worker.held_bytes == 0)


def test_bodies_for_other_routes_are_held_within_the_same_limit(digits: Predictor) -> None:
    """Forms and what is no prediction: all together, until they are answered."""
    half = b"POST /v2/repository/index HTTP/1.1\r\nContent-Length: 70000\r\n\r\n" + bytes(60_000)
    with listening(digits, max_queue_bytes=100_000) as server, server.connect() as first:
        first.send(half)
        server.wait_until(lambda: server.worker.held_bytes == 60_000)
        with server.connect() as second:
            second.send(half)
            answer = second.read()
            assert answer.status == 503 and "bytes are held" in answer.error
        server.wait_until(lambda: server.worker.held_bytes == 60_000)
        first.send(bytes(10_000))
        assert first.read().status == 400
        server.wait_until(lambda: server.worker.held_bytes == 0)
        # Answered before it was there.
        first.send(b"POST /nothing HTTP/1.1\r\nContent-Length: 50000\r\n\r\n")
        assert first.read().status in (404, 405)
        first.send(bytes(50_000))
        assert first.ask(get("/model")).status == 200
        server.wait_until(lambda: server.worker.held_bytes == 0)


def test_a_request_that_was_answered_early_is_not_answered_again(digits: Predictor) -> None:
    with listening(digits, max_body_bytes=1000) as server, server.connect() as client:
        client.send(b"POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.read().status in (404, 405)
        client.send(b"800\r\n" + bytes(2048) + b"\r\n0\r\n\r\n")
        assert client.is_closed()
        server.wait_until_idle()


def test_what_comes_slowly_is_not_waited_for_when_the_service_ends(digits: Predictor) -> None:
    with listening(digits) as server, server.connect() as client:
        client.send(b"POST /predict HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n" + bytes(10**6))
        server.wait_until(lambda: server.worker.held_bytes == 10**6)
        server.worker.drain_until = 0.0
        answer = client.read()
        assert answer.status == 408 and SLOW in answer.error


def test_who_never_stops_sending_is_cut_off(
    digits: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.connection._LINGER_BYTES", 2**20)
    monkeypatch.setattr("serving.connection._LINGER_S", 1000.0)
    with listening(digits, max_body_bytes=1000) as server, server.connect() as client:
        head = b"POST /predict HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n"
        send_all_the_while(client, head, bytes(2**16), 10_000)
        assert client.read().status == 413
        server.wait_until(lambda: not server.connections)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /", b"a" * 10_000),
        (b"GET / HTTP/1.1\r\n", b"X-Header: value\r\n" * 1000),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 10_000),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
         b"X-Trailer: value\r\n" * 1000),
    ],
    ids=["target", "headers", "header", "trailers"],
)  # fmt: skip
def test_a_head_without_end_is_refused(
    digits: Predictor, head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.connection._LINGER_S", 0.5)
    with listening(digits) as server, server.connect() as client:
        send_all_the_while(client, head, piece, 1000)
        answer = client.read()
        assert answer.status == 431 and "at most 65536 bytes" in answer.error
        server.wait_until(lambda: not server.connections)


def test_who_is_slow_is_told_so_and_closed(digits: Predictor) -> None:
    with listening(digits, read_timeout_s=0.3, keep_alive_s=0.3) as server:
        for part, status in (
            (b"", None),
            (b"GET", 408),
            (b"GET / HTTP/1.1\r\nHost: te", 408),
            (b"POST /predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n123", 408),
            (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5", 408),
            (b"POST /v2/repository/index HTTP/1.1\r\nContent-Length: 10\r\n\r\n123", 408),
        ):
            with server.connect() as client:
                client.send(part)
                if status is not None:
                    answer = client.read()
                    assert answer.status == status and SLOW in answer.error, part
                else:
                    assert client.is_closed()
        # So is an idle connection, without a word.
        with server.connect() as client:
            assert client.ask(get("/model")).status == 200
            assert client.is_closed()
        server.wait_until_idle()


def test_times_are_kept_to_where_counts_can_no_longer_be_written(
    digits: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(digits, read_timeout_s=0.3) as server:
        shutil.rmtree(server.worker.metrics._directory)
        with server.connect() as busy:
            assert is_answer(busy.ask(post("/predict", body_of(digits))), digits)
            server.wait_until(lambda: "could not be written" in caplog.text)
        with server.connect() as client:
            assert client.ask(b"GET").status == 408


def test_a_form_whose_answer_takes_too_long_is_given_up(digits: Predictor, gate: Gate) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    part += encode_png(digits.golden.raw[0]) + b"\r\n--x--\r\n"
    form = post("/predict/image", part, "Content-Type: multipart/form-data; boundary=x")
    with listening(digits, run=gate, request_timeout_s=0.2) as server, server.connect() as client:
        answer = client.ask(form)
        assert answer.status == 504 and "0.2 s" in answer.error
        gate.go.set()
        server.wait_until_idle()


@pytest.mark.parametrize("size", [1000, 100_000])
def test_an_answer_that_takes_too_long_is_given_up_while_the_next_request_comes(
    digits: Predictor, gate: Gate, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("serving.connection._LINGER_S", 0.2)
    head = b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size
    with listening(digits, run=gate, request_timeout_s=0.2) as server, server.connect() as client:
        client.send(post("/predict", body_of(digits)) + head + bytes(500))
        answer = client.read()
        assert answer.status == 504 and "0.2 s" in answer.error
        assert client.is_closed()
        gate.go.set()
        server.wait_until_idle()


def test_an_answer_that_takes_too_long_is_given_up(digits: Predictor, gate: Gate) -> None:
    with listening(digits, run=gate, request_timeout_s=0.2) as server, server.connect() as client:
        answer = client.ask(post("/predict", body_of(digits)))
        assert answer.status == 504 and "0.2 s" in answer.error
        assert client.is_closed()
        gate.go.set()
        server.wait_until_idle()
        with server.connect() as other:
            assert is_answer(other.ask(post("/predict", body_of(digits))), digits)


def test_one_connection_too_many_is_refused(digits: Predictor) -> None:
    with listening(digits, max_connections=2) as server:
        with server.connect() as one, server.connect() as two:
            assert one.ask(get("/model")).status == two.ask(get("/model")).status == 200
            with server.connect() as third:
                answer = third.read()
                assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
                assert "2 connections are open" in answer.error and third.is_closed()
            assert one.ask(get("/model")).status == 200
        server.wait_until_idle()
        with server.connect() as client:
            assert client.ask(get("/model")).status == 200
        assert server.worker.metrics.counts.shed == {"connections": 1}


def test_bodies_that_are_held_are_bounded_together(digits: Predictor) -> None:
    with listening(digits, max_queue_bytes=1000) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        for client in clients[:2]:
            client.send(b"POST /predict HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + bytes(480))
        server.wait_until(lambda: server.worker.held_bytes == 960)
        answer = clients[2].ask(post("/predict", bytes(100)))
        assert answer.status == 503 and answer.headers["retry-after"]
        assert clients[0].ask(bytes(20)).status == 400
        assert server.worker.held_bytes == 480
        clients[1].socket.close()
        server.wait_until(lambda: server.worker.held_bytes == 0)
        assert server.worker.metrics.counts.shed == {"bytes": 1}


@pytest.mark.parametrize("leave", ["closes", "resets", "is closed with requests behind"])
def test_of_a_client_that_is_gone_nothing_stays_and_the_others_are_answered(
    digits: Predictor, gate: Gate, leave: str
) -> None:
    with listening(digits, run=gate) as server, server.connect() as stays:
        stays.send(post("/predict", body_of(digits, 1)))
        server.wait_until(lambda: gate.rows == 1)
        gone = [server.connect() for _ in range(4)]
        behind = post("/predict", b"{}") + get("/model") if "behind" in leave else b""
        for client in gone:
            client.send(post("/predict", body_of(digits, 0, 3)) + behind)
        counts = server.worker.metrics.counts
        server.wait_until(lambda: counts.in_progress == 5)
        assert server.worker.model.batcher.queued_rows == 12 and server.worker.held_bytes
        for client in gone:
            if leave == "resets":
                client.socket.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER
            if leave != "is closed with requests behind":
                client.socket.close()
        if leave == "is closed with requests behind":
            # The server does not read from them, so that it cannot see their end.
            ends = [c for c in server.connections if c.pipeline]
            assert len(ends) == 4
            for connection in ends:
                server.loop.call_soon_threadsafe(connection.transport.abort)
        server.wait_until(lambda: counts.connections == 1)
        gate.go.set()
        for client in gone:
            client.socket.close()
        assert is_answer(stays.read(), digits, 1)
        assert is_answer(stays.ask(post("/predict", body_of(digits, 2))), digits, 2)
        stays.socket.close()
        server.wait_until_idle()
        assert gate.rows == 2


def test_a_connection_with_too_many_requests_waiting_is_cut_off(
    digits: Predictor, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that they come in one piece: after a piece with requests that wait none is read.
    monkeypatch.setattr("serving.connection._MAX_PIPELINED", 100)
    with listening(digits, run=gate) as server:
        with server.connect() as client:
            client.send(post("/predict", body_of(digits)) + get("/model") * 100)
            server.wait_until(lambda: any(len(c.pipeline) == 100 for c in server.connections))
            gate.go.set()
            assert is_answer(client.read(), digits)
            assert all(client.read().status == 200 for _ in range(100))
        server.wait_until_idle()
        gate.go.clear()
        with server.connect() as client:
            client.send(post("/predict", body_of(digits)) + get("/model") * 101)
            assert client.is_closed()
        server.wait_until(lambda: not server.connections)
        gate.go.set()
        server.wait_until_idle()


def test_who_is_refused_and_asks_again_at_once_waits_for_the_next_refusal(
    digits: Predictor, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.prediction._REFUSALS_APART_S", 2.0)
    with (
        listening(digits, run=gate, max_queue_rows=1) as server,
        server.connect() as running,
        server.connect() as waiting,
        server.connect() as again,
    ):
        running.send(post("/predict", body_of(digits)))
        server.wait_until(lambda: gate.rows == 1)
        waiting.send(post("/predict", body_of(digits)))
        server.wait_until(lambda: server.worker.model.batcher.queued_rows == 1)
        moments = [time.monotonic()]
        for _ in range(2):
            assert again.ask(post("/predict", body_of(digits))).status == 503
            moments.append(time.monotonic())
        assert moments[1] - moments[0] < 2.0 <= moments[2] - moments[1] + 0.1
        gate.go.set()
        assert is_answer(running.read(), digits) and is_answer(waiting.read(), digits)
        assert is_answer(again.ask(post("/predict", body_of(digits))), digits)


@pytest.mark.parametrize("request_of", [lambda d: post("/predict", body_of(d, 0, 250)),
                                        lambda _: get("/docs.json?" + "x" * 2000)])  # fmt: skip
def test_who_does_not_read_answers_gets_no_more_of_them(
    digits: Predictor, request_of: Callable[[Predictor], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is cut off; what the server holds for it meanwhile is bounded."""
    monkeypatch.setattr("serving.connection._LINGER_S", 0.5)
    most = 0
    with listening(digits, keep_alive_s=1.0, request_timeout_s=1.0) as server:
        with server.connect() as client:
            send_all_the_while(client, b"", request_of(digits), 100_000)
            server.wait_until(lambda: bool(server.connections))
            (connection,) = server.connections

            def is_gone() -> bool:
                nonlocal most
                if not server.connections:
                    return True
                with contextlib.suppress(RuntimeError):  # closed just now
                    most = max(most, connection.transport.get_write_buffer_size())
                return False

            server.wait_until(is_gone)
        server.wait_until_idle()
        assert 0 < most < 8 * 2**20


def test_errors_leave_the_connection_as_it_was(digits: Predictor) -> None:
    with listening(digits) as server, server.connect() as client:
        for request, status in (
            (post("/predict", b""), 400),
            (post("/predict", json.dumps({"instances": []}).encode()), 400),
            (post("/predict/image", b"no picture"), 400),
            (post("/predict/image?top_k=x", b""), 400),
            (post("/v2/models/digits/infer", b"{}"), 400),
            (post("/v2/models/digits/infer", b"{}", "Inference-Header-Content-Length: x"), 400),
            (get("/predict"), 405),
        ):
            answer = client.ask(request)
            assert answer.status == status and answer.error
            assert is_answer(client.ask(post("/predict", body_of(digits))), digits)
        requests = server.worker.metrics.counts.requests
        assert sum(requests["/predict 200"].counts) == 7
        assert sum(requests["/predict 400"].counts) == 2
        client.socket.close()
        server.wait_until_idle()
