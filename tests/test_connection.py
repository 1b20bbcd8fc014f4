"""A connection's requests: each answered once, in their order, however their bytes come."""

from __future__ import annotations

import functools
import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.predictor import Predictor
from tests.listening import (
    PATIENCE_S,
    Answered,
    Listening,
    body_of,
    get,
    is_answer,
    listening,
    post,
)


@pytest.fixture
def server(digits: Predictor) -> Iterator[Listening]:
    with listening(digits) as running:
        yield running


def chunked(path: str, body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    head = f"POST {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + framed + b"0\r\n\r\n"


def test_requests_are_answered_in_order_whatever_they_are(
    server: Listening, digits: Predictor
) -> None:
    """Predictions, the app's routes and refusals, sent at once."""
    with server.connect() as client:
        stream = [
            post("/predict", body_of(digits, 0)),
            get("/model"),
            post("/predict", b"no json"),
            post("/predict", body_of(digits, 1)),
            get("/nothing"),
            chunked("/predict", body_of(digits, 2), 100),
            post("/v2/models/other/infer", b"{}"),
            get("/v2/health/ready"),
            post("/predict", body_of(digits, 3)),
        ]
        client.send(b"".join(stream))
        answers = [client.read() for _ in stream]
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 404, 200, 404, 200, 200]
    for position, row in ((0, 0), (3, 1), (5, 2), (8, 3)):
        assert is_answer(answers[position], digits, row)
    server.wait_until_idle()


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from(["row", "chunked", "bad", "app", "none"]), max_size=8),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_where_the_stream_is_cut_changes_no_answer(
    server: Listening, digits: Predictor, kinds: list[str], cuts: list[float]
) -> None:
    requests = {
        "row": lambda row: post("/predict", body_of(digits, row)),
        "chunked": lambda row: chunked("/predict", body_of(digits, row), 33),
        "bad": lambda _: post("/predict", b'{"instances": 1}'),
        "app": lambda _: get("/v2/health/live"),
        "none": lambda _: post("/nothing", b"body"),
    }
    statuses = {"row": 200, "chunked": 200, "bad": 400, "app": 200, "none": 404}
    stream = b"".join(requests[kind](row) for row, kind in enumerate(kinds))
    ends = sorted(int(cut * len(stream)) for cut in cuts)
    with server.connect() as client:
        for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
            client.send(stream[start:end])
        for row, kind in enumerate(kinds):
            answer = client.read()
            assert answer.status == statuses[kind]
            assert kind not in ("row", "chunked") or is_answer(answer, digits, row)
    server.wait_until_idle()


def test_a_thousand_refusals_behind_one_that_runs_are_all_answered(digits: Predictor) -> None:
    go = threading.Event()

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert go.wait(PATIENCE_S)
        return digits.model(raw)

    with listening(digits, run=run) as server, server.connect() as client:
        count = 1500
        client.send(post("/predict", body_of(digits)) + post("/predict", b"{}") * count)
        server.wait_until(lambda: server.worker.metrics.counts.in_progress == 1)
        go.set()
        statuses = [client.read().status for _ in range(count + 1)]
        assert statuses == [200] + [400] * count


def test_a_body_is_asked_for_where_its_client_waits(server: Listening, digits: Predictor) -> None:
    body = body_of(digits)
    for path, status in (("/predict", 200), ("/v2/repository/index", 200)):
        request = post(path, body, "Expect: 100-continue")
        with server.connect() as client:
            client.send(request[: -len(body)])
            assert client.read().status == 100
            assert client.ask(body).status == status
            assert client.ask(get("/model")).status == 200


def test_http_1_0_and_connection_close_end_the_connection(
    server: Listening, digits: Predictor
) -> None:
    body = body_of(digits)
    old = f"POST /predict HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    for request in (
        old,
        post("/predict", body, "Connection: close"),
        b"GET /model HTTP/1.0\r\n\r\n",
        get("/model", "Connection: close"),
    ):
        with server.connect() as client:
            answer = client.ask(request)
            assert answer.status == 200 and answer.headers["connection"] == "close"
            assert client.is_closed()
    server.wait_until_idle()


def test_other_methods_of_a_prediction_route_are_told_which_it_takes(server: Listening) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PROPFIND"):
        with server.connect() as client:
            client.send(f"{method} /predict HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            answer = client.read(head_only=method == "HEAD")
            assert answer.status == 405 and "POST" in answer.headers["allow"]
            assert method == "HEAD" or answer.error
            assert client.ask(get("/model")).status == 200


def test_an_encoded_path_is_the_path_that_it_encodes(server: Listening, digits: Predictor) -> None:
    with server.connect() as client:
        for path in ("/%70redict", "/predict?", "/predict?x=%20", "/predic%74?x"):
            assert is_answer(client.ask(post(path, body_of(digits))), digits)
        for path in ("/predict%2F", "/predict/", "/a%ff%00b", "/%"):
            assert client.ask(post(path, b"{}")).status == 404


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET host:1 HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /model HTTP/1.1\r\nno colon\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_once_in_json_and_closed(
    server: Listening, garbage: bytes
) -> None:
    with server.connect() as client:
        answer = client.ask(garbage)
        assert answer.status == 400 and answer.error and answer.headers["connection"] == "close"
        client.socket.settimeout(0.05)
        with pytest.raises((TimeoutError, EOFError, ConnectionError)):
            client.ask(b"more\r\n\r\n")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_not_taken_up(
    server: Listening, digits: Predictor, protocol: str
) -> None:
    """Java's client makes one with its first request, which has a body all the same."""
    offer = "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMA"
    with server.connect() as client:
        client.send(post("/predict", body_of(digits, 1), *offer) + get("/model", *offer))
        assert is_answer(client.read(), digits, 1)
        assert client.read().status == 200
        whole = post("/predict", body_of(digits, 2), *offer)
        for start in range(0, len(whole), 100):
            client.send(whole[start : start + 100])
        assert is_answer(client.read(), digits, 2)
        assert client.ask(b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n").status == 405


def test_many_offers_at_once_are_declined_one_by_one(server: Listening) -> None:
    count = 1500
    offer = get("/model", "Connection: Upgrade", "Upgrade: x")
    with server.connect() as client:
        client.send(offer * count)
        assert all(client.read().status == 200 for _ in range(count))


def test_headers_that_are_no_text_are_refused_where_they_would_be_read(
    server: Listening, digits: Predictor
) -> None:
    for value, status in ((b"caf\xc3\xa9", 200), (b"caf\xe9", 200), (b"\xff\\x", 400)):
        with server.connect() as client:
            header = b"\r\nUser-Agent: " + value
            assert client.ask(get("/model")[:-4] + header + b"\r\n\r\n").status == status
    request = post("/predict", body_of(digits), "User-Agent: \xff\\x")
    assert is_answer(_ask_anew(server, request), digits)


def test_a_form_that_nothing_can_read_is_the_callers_mistake(server: Listening) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    kind = "Content-Type: multipart/form-data; boundary=x; charset=undefined"
    answer = _ask_anew(server, post("/predict/image", part, kind))
    assert answer.status == 400 and "form" in answer.error


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", lambda body: body)],
)
def test_compressed_bodies_are_taken(
    server: Listening, digits: Predictor, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    with server.connect() as client:
        whole = encode(body_of(digits))
        header = f"Content-Encoding: {encoding}"
        assert is_answer(client.ask(post("/predict", whole, header)), digits)
        if encoding != "identity":
            assert client.ask(post("/predict", whole[:-4], header)).status == 400
        assert client.ask(post("/predict", whole, "Content-Encoding: br")).status == 415
        assert is_answer(client.ask(post("/predict", body_of(digits))), digits)


def test_without_a_token_only_health_is_told(digits: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first, second = "Bearer first-token-of-16", "Bearer second-token-of-16"
    file.write_text(f"{first[7:]}\n")
    body = body_of(digits)
    with listening(digits, tokens=file) as server:
        ask = functools.partial(_ask_anew, server)
        for request in (
            get("/model"), get("/metrics"), get("/"), get("/nothing"), get("/livez/"),
            post("/predict", body), post("/predict", body, f"Authorization: {second}"),
            post("/predict", body, "Authorization: Basic first-token-of-16"),
        ):  # fmt: skip
            answer = ask(request)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert "Bearer" in answer.error
        # HEAD has no body, whatever it is refused for: here the next answer would begin with it.
        with server.connect() as client:
            head = get("/model").replace(b"GET", b"HEAD")
            client.send(get("/v2/health/ready") + head + get("/v2/health/ready"))
            assert client.read().status == 200
            refused = client.read(head_only=True)
            assert refused.status == 401 and int(refused.headers["content-length"]) > 0
            assert client.read().status == 200
        assert ask(get("/v2/health/ready")).status == 200
        assert is_answer(ask(post("/predict", body, f"Authorization: {first}")), digits)
        written = tmp_path / "new"
        written.write_text(f"{second[7:]}\n")
        written.replace(file)
        good = post("/predict", body, f"Authorization: {second}")
        server.wait_until(lambda: ask(good).status == 200)
        assert ask(post("/predict", body, f"Authorization: {first}")).status == 401
        server.wait_until_idle()


def _ask_anew(server: Listening, request: bytes) -> Answered:
    with server.connect() as client:
        return client.ask(request)
