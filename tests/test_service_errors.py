"""A real `bentoml serve` process over HTTP: what it refuses, and in which words."""

from __future__ import annotations

import base64
import concurrent.futures
import gzip
import io
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from tests.answers import Serve, rows_of
from tests.test_pixels import png_claiming

GOOD = [[0] * 8] * 8


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"not json", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 50_000, 400, "the body: expected `object`"),
        (b'{"instances": ' + b"[" * 50_000, 400, "instances"),
        ([], 400, "the body: expected `object`, got `array`"),
        ({}, 400, "the body: missing field or column `instances`"),
        ({"instances": []}, 400, "instances: expected `array` of length >= 1"),
        ({"instances": 3}, 400, "instances: expected `array`, got `int`"),
        ({"instances": [GOOD], "extra": 1}, 400, "the body: unknown field or column `extra`"),
        (
            {"instances": [GOOD, [[0] * 8] * 7]},
            400,
            "instances[1]: expected `array` of length >= 8",
        ),
        ({"instances": [[[0] * 9] * 8]}, 400, "instances[0][0]: expected `array` of length <= 8"),
        ({"instances": [[[0.5] * 8] * 8]}, 400, "instances[0][0][0]: expected `int`, got `float`"),
        ({"instances": [[["1"] * 8] * 8]}, 400, "instances[0][0][0]: expected `int`, got `str`"),
        ({"instances": [[[True] * 8] * 8]}, 400, "instances[0][0][0]: expected `int`, got `bool`"),
        ({"instances": [[[256] * 8] * 8]}, 400, "instances[0][0][0]: expected `int` <= 255"),
        ({"instances": [[[-1] * 8] * 8]}, 400, "instances[0][0][0]: expected `int` >= 0"),
        (b'{"instances": [[[NaN]]]}', 400, "the body is not JSON"),
        ({"instances": [GOOD], "top_k": 11}, 400, "top_k: expected `int` <= 10"),
        ({"instances": [GOOD], "top_k": 0}, 400, "top_k: expected `int` >= 1"),
        ({"instances": [{"b64": "!"}]}, 400, "instances[0].b64: not base64"),
        ({"instances": [GOOD, {"b64": "aGVsbG8="}]}, 400, "instances[1].b64: expected a picture"),
        ({"instances": [{"b64": 1}]}, 400, "instances[0].b64: expected `str`, got `int`"),
        ({"instances": [{"url": "http://x"}]}, 400, "instances[0]: unknown field or column `url`"),
    ],
)
def test_a_bad_picture_request_names_the_place(
    serve: Serve, body: Any, status: int, message: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with serve("digits").client() as client:
        response = client.post("/predict", content=content)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        assert message in response.json()["error"]


def test_a_bad_table_request_names_the_row_and_column(serve: Serve, cancer: Predictor) -> None:
    row = rows_of(cancer, cancer.golden.raw[:1])[0]
    name = "mean radius"
    without = {key: value for key, value in row.items() if key != name}
    cases: list[tuple[str, str]] = [
        (json.dumps(without), f"instances[1]: missing field or column `{name}`"),
        (json.dumps({**row, "age": 1}), "instances[1]: unknown field or column `age`"),
        (json.dumps({**row, name: "17"}), f"instances[1].{name}: expected `float`, got `str`"),
        (json.dumps({**row, name: None}), f"instances[1].{name}: expected `float`, got `null`"),
        (json.dumps({**row, name: True}), f"instances[1].{name}: expected `float`, got `bool`"),
        (json.dumps({**row, name: [1]}), f"instances[1].{name}: expected `float`, got `array`"),
        (json.dumps({**row, name: float("nan")}), "the body is not JSON"),
        (json.dumps({**row, name: float("inf")}), "the body is not JSON"),
        (json.dumps(row).replace(str(row[name]), "1e999", 1), f"instances[1].{name}: number out"),
        ("[1, 2]", "instances[1]: expected `object`, got `array`"),
    ]
    with serve("breast-cancer").client() as client:
        for text, message in cases:
            body = f'{{"instances": [{json.dumps(row)}, {text}]}}'
            response = client.post("/predict", content=body)
            assert response.status_code == 400, response.text
            assert message in response.json()["error"]
        large = client.post("/predict", json={"instances": [{**row, name: 1e300}]})
        assert large.status_code == 200


def test_a_bad_picture_file_is_refused_by_name(serve: Serve) -> None:
    png = encode_png(np.zeros((1, 8, 8), np.uint8))
    truncated = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(truncated, format="JPEG")
    cases = {
        b"no picture": "the body: expected a picture",
        b"": "the body: expected a picture",
        truncated.getvalue()[:-300]: "the body: the picture is damaged",
        png_claiming(20_000, 20_000): "the body: expected a picture of at most 50000000 pixels",
    }
    with serve("digits").client() as client:
        for content, message in cases.items():
            response = client.post("/predict/image", content=content)
            assert response.status_code == 400, response.text
            assert message in response.json()["error"]
        files = [("files", ("a.png", png)), ("files", ("b.png", b"nothing"))]
        response = client.post("/predict/image", files=files)
        assert response.status_code == 400
        assert "files[1]: expected a picture" in response.json()["error"]
        response = client.post("/predict/image", files=[("image", ("a.png", png))])
        assert response.status_code == 400 and "'files'" in response.json()["error"]
        for top_k in ("99", "0", "x", "", "1.5", "000000001" + "0" * 5000):
            response = client.post(f"/predict/image?top_k={top_k}", content=png)
            assert response.status_code == 400 and "top_k" in response.json()["error"]
        broken = {"content-type": "multipart/form-data; boundary=x"}
        response = client.post("/predict/image", content=b"--y", headers=broken)
        assert response.status_code == 400 and response.json()["error"]


def test_pictures_that_are_slow_to_decode_hold_up_nobody(serve: Serve, digits: Predictor) -> None:
    """A few KB can hold 49 million pixels: together they are limited, alone they wait aside."""
    buffer = io.BytesIO()
    Image.new("1", (7000, 7000), 1).save(buffer, format="PNG", optimize=True)
    slow = {"b64": base64.b64encode(buffer.getvalue()).decode()}
    with serve("digits").client() as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        response = client.post("/predict", json={"instances": [slow, slow]})
        assert response.status_code == 400
        expected = "instances[1].b64: expected at most 50000000 pixels in all pictures together"
        assert expected in response.json()["error"]
        calls = [pool.submit(client.post, "/predict", json={"instances": [slow]}) for _ in range(4)]
        waits = []
        while not all(call.done() for call in calls):
            began = time.perf_counter()
            assert client.get("/livez").status_code == 200
            waits.append(time.perf_counter() - began)
        # Those that would wait too long behind the first are refused at once.
        assert {call.result().status_code for call in calls} <= {200, 503}
        assert any(call.result().status_code == 200 for call in calls)
        assert np.median(waits) < 0.5


def test_more_rows_than_one_request_may_have_are_refused(serve: Serve) -> None:
    with serve("digits").client() as client:
        response = client.post("/predict", json={"instances": [GOOD] * 8193})
        assert response.status_code == 400
        assert "instances: expected `array` of length <= 8192" in response.json()["error"]


def test_a_damaged_orientation_tag_is_a_bad_picture_or_none(serve: Serve) -> None:
    image = Image.new("RGB", (8, 8), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", exif=exif)
    payload = buffer.getvalue()
    start = payload.index(b"Exif")
    generator = np.random.default_rng(0)
    with serve("digits").client() as client:
        for _ in range(100):
            spoiled = bytearray(payload)
            for place in generator.integers(start, start + 40, 3):
                spoiled[place] = generator.integers(0, 256)
            assert client.post("/predict/image", content=bytes(spoiled)).status_code in (200, 400)


def test_a_table_model_takes_no_pictures(serve: Serve) -> None:
    with serve("breast-cancer").client() as client:
        response = client.post("/predict/image", content=b"x")
        assert response.status_code == 404 and "POST /predict" in response.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(serve: Serve, chunked: bool) -> None:
    body = b" " * 34_000_000
    content = (body[start : start + 10**6] for start in range(0, len(body), 10**6))
    with serve("digits").client() as client:
        for route in ("/predict", "/predict/image"):
            response = client.post(route, content=content if chunked else body)
            assert response.status_code == 413, response.text
            assert "at most 33554432 bytes" in response.json()["error"]
            content = iter([body])
        # Just under the limit it is a request like another.
        png = {"b64": base64.b64encode(encode_png(np.zeros((1, 8, 8), np.uint8))).decode()}
        padded = json.dumps({"instances": [png]}) + " " * 33_000_000
        assert client.post("/predict", content=padded).status_code == 200


def test_a_compressed_body_is_a_body_and_is_limited_too(serve: Serve) -> None:
    body = json.dumps({"instances": [GOOD]}).encode()
    with serve("digits").client() as client:
        for encoding, content, status, message in (
            ("gzip", gzip.compress(body), 200, None),
            ("deflate", zlib.compress(body), 200, None),
            ("identity", body, 200, None),
            ("gzip", gzip.compress(b" " * 34_000_000), 413, "at most 33554432 bytes inflated"),
            ("gzip", body, 400, "the body is not gzip, or damaged"),
            ("gzip", gzip.compress(body)[:-9], 400, "the body is cut short"),
            ("br", body, 415, "expected gzip, deflate or identity, found 'br'"),
        ):
            headers = {"content-encoding": encoding}
            response = client.post("/predict", content=content, headers=headers)
            assert response.status_code == status, response.text
            assert message is None or message in response.json()["error"]


def test_every_error_is_json(serve: Serve) -> None:
    with serve("digits").client() as client:
        for response, status in (
            (client.get("/nowhere"), 404),
            (client.post("/predict/other"), 404),
            (client.get("/predict"), 405),
            (client.delete("/model"), 405),
            (client.post("/"), 405),
            (client.put("/predict"), 405),
            (client.put("/livez"), 405),
            (client.get("/static_content/x"), 404),
        ):
            assert response.status_code == status
            assert response.json()["error"]
