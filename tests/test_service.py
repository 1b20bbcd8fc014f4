"""A real `bentoml serve` process over HTTP: its answers, its errors, its start and its end."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from artifacts.bundle import Golden, read_bundle, write_bundle
from artifacts.manifest import BUNDLE_FILES
from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from artifacts.references import resolve
from tests.conftest import Server, start_server, stop_server, wait_until_ready
from tests.test_pixels import png_claiming
from training.data import load_dataset
from training.recipe import DataConfig

Serve = Callable[[str], Server]


def probabilities_in(response: httpx.Response, predictor: Predictor) -> np.ndarray:
    """The answer's probabilities as float32, which a double written out in full gives back."""
    assert response.status_code == 200, response.text
    labels = predictor.manifest.labels
    rows = [
        [prediction["probabilities"][label] for label in labels]
        for prediction in response.json()["predictions"]
    ]
    doubles = np.array(rows, dtype=np.float64)
    singles = doubles.astype(np.float32)
    np.testing.assert_array_equal(singles.astype(np.float64), doubles)
    return singles


def rows_of(predictor: Predictor, raw: np.ndarray) -> list[dict[str, float]]:
    names = [column.name for column in predictor.manifest.input.columns]
    return [dict(zip(names, row, strict=True)) for row in raw.tolist()]


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return load_dataset(DataConfig(source="digits")).test.raw


def test_a_row_has_the_same_bits_over_http_alone_and_in_any_batch(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    """Promise 2: nested pixels, base64, raw body, multipart; one row, a few, all."""
    _, expected = digits.run(pictures)
    with serve("digits").client() as client:
        nested = {"instances": pictures[:, 0].tolist()}
        answered = probabilities_in(client.post("/predict", json=nested), digits)
        np.testing.assert_array_equal(answered, expected)
        for row in (0, 5, len(pictures) - 1):
            png = encode_png(pictures[row])
            encoded = {"b64": base64.b64encode(png).decode()}
            calls = [
                client.post("/predict", json={"instances": [pictures[row, 0].tolist()]}),
                client.post("/predict", json={"instances": [encoded]}),
                client.post("/predict/image", content=png),
                client.post("/predict/image", content=png, headers={"content-type": "image/png"}),
            ]
            for response in calls:
                answer = probabilities_in(response, digits)
                np.testing.assert_array_equal(answer[0], expected[row])
        files = [("files", (f"{row}.png", encode_png(pictures[row]))) for row in range(30)]
        several = probabilities_in(client.post("/predict/image", files=files), digits)
        np.testing.assert_array_equal(several, expected[:30])
        mixed = {"instances": [nested["instances"][0], encoded, nested["instances"][1]]}
        answer = probabilities_in(client.post("/predict", json=mixed), digits)
        np.testing.assert_array_equal(answer, expected[[0, len(pictures) - 1, 1]])


def test_a_prediction_has_label_index_probability_and_model(
    serve: Serve, cancer: Predictor
) -> None:
    raw = cancer.golden.raw[:20]
    _, expected = cancer.run(raw)
    with serve("breast-cancer").client() as client:
        response = client.post("/predict", json={"instances": rows_of(cancer, raw)})
        np.testing.assert_array_equal(probabilities_in(response, cancer), expected)
        assert response.json()["model"] == cancer.manifest.reference
        for prediction, row in zip(response.json()["predictions"], expected, strict=True):
            assert prediction["index"] == row.argmax()
            assert prediction["label"] == cancer.manifest.labels[row.argmax()]
            assert prediction["probability"] == row.max()
            assert list(prediction["probabilities"]) == list(cancer.manifest.labels)


def test_top_k_answers_the_largest_in_order(serve: Serve, digits: Predictor) -> None:
    png = encode_png(digits.golden.raw[0])
    body = {"instances": [{"b64": base64.b64encode(png).decode()}], "top_k": 3}
    with serve("digits").client() as client:
        for response in (
            client.post("/predict", json=body),
            client.post("/predict/image?top_k=3", content=png),
        ):
            shown = response.json()["predictions"][0]["probabilities"]
            order = digits.run(digits.golden.raw[:1])[1][0].argsort()[::-1][:3]
            assert list(shown) == [digits.manifest.labels[index] for index in order]


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
        assert all(call.result().status_code == 200 for call in calls)
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
    body = b" " * 11_000_000
    content = (body[start : start + 10**6] for start in range(0, len(body), 10**6))
    with serve("digits").client() as client:
        for route in ("/predict", "/predict/image"):
            response = client.post(route, content=content if chunked else body)
            assert response.status_code == 413, response.text
            assert "at most 10000000 bytes" in response.json()["error"]
            content = iter([body])
        # Just under the limit it is a request like another.
        png = {"b64": base64.b64encode(encode_png(np.zeros((1, 8, 8), np.uint8))).decode()}
        padded = json.dumps({"instances": [png]}) + " " * 9_900_000
        assert client.post("/predict", content=padded).status_code == 200


def test_an_encoded_body_is_refused_not_guessed(serve: Serve) -> None:
    with serve("digits").client() as client:
        response = client.post("/predict", content=b"x", headers={"content-encoding": "gzip"})
        assert response.status_code == 415 and "gzip" in response.json()["error"]


def test_every_error_is_json(serve: Serve) -> None:
    with serve("digits").client() as client:
        for response, status in (
            (client.get("/nowhere"), 404),
            (client.post("/predict/other"), 404),
            (client.get("/predict"), 405),
            (client.delete("/model"), 405),
            (client.post("/"), 405),
            (client.put("/predict"), 405),
            (client.get("/static_content/x"), 404),
        ):
            assert response.status_code == status
            assert response.json()["error"]


def test_what_the_service_says_of_itself_is_of_this_model(
    serve: Serve, digits: Predictor, cancer: Predictor
) -> None:
    for name, predictor in (("digits", digits), ("breast-cancer", cancer)):
        manifest = predictor.manifest
        with serve(name).client() as client:
            model = client.get("/model").json()
            assert model["version"] == manifest.version
            assert model["labels"] == list(manifest.labels)
            assert (model["backend"], model["device"]) == ("onnx", "cpu")
            assert "recipe" not in model
            docs = client.get("/docs.json").json()
            assert docs["info"]["title"] == manifest.reference
            label = docs["components"]["schemas"]["Predictions"]["properties"]["predictions"]
            assert label["items"]["properties"]["label"]["enum"] == list(manifest.labels)
            operation = docs["paths"]["/predict"]["post"]
            example = operation["requestBody"]["content"]["application/json"]["example"]
            answer = probabilities_in(client.post("/predict", json=example), predictor)
            np.testing.assert_array_equal(answer, predictor.run(predictor.golden.raw[:1])[1])
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert "bentoml_service_request_total" in client.get("/metrics").text
            page = client.get("/")
            assert page.status_code == 200 and manifest.reference in page.text
            # Nothing on it, and nothing it may load, is of another server.
            assert f"curl {client.base_url}".rstrip("/") in page.text
            assert "//" not in page.text.replace("http://127.0.0.1:", "")
            assert "default-src 'none'" in page.headers["content-security-policy"]
    columns = docs["components"]["schemas"]["Instance"]["properties"]
    assert list(columns) == [column.name for column in cancer.manifest.input.columns]


def test_each_of_many_callers_gets_its_own_answer_and_bad_ones_fail_alone(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    """Promise 5: 300 requests from 16 threads, every fifth of them bad."""
    _, expected = digits.run(pictures)
    generator = np.random.default_rng(0)
    requests = [generator.integers(0, len(pictures), generator.integers(1, 9)) for _ in range(300)]

    def call(index: int, client: httpx.Client) -> None:
        instances = pictures[requests[index], 0].tolist()
        if index % 5 == 0:
            instances[-1] = [[0] * 8] * 7
        response = client.post("/predict", json={"instances": instances})
        if index % 5 == 0:
            assert response.status_code == 400
        else:
            answer = probabilities_in(response, digits)
            np.testing.assert_array_equal(answer, expected[requests[index]])

    with serve("digits").client() as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: call(index, client), range(300)))


def test_termination_answers_what_was_accepted_and_exits_with_0(
    store: Path, tmp_path: Path, digits: Predictor
) -> None:
    server = start_server(tmp_path / "log", PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="digits")
    wait_until_ready(server)
    body = {"instances": digits.golden.raw[:, 0].tolist() * 8}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(httpx.post, f"{server.url}/predict", json=body, timeout=60)
            for _ in range(4)
        ]
        time.sleep(0.15)
        server.process.send_signal(signal.SIGTERM)
        for call in calls:
            assert call.result().status_code == 200
    assert server.process.wait(timeout=60) == 0


def refused(tmp_path: Path, **environment: str) -> str:
    """What `bentoml serve` says when it refuses to start; its exit status must not be 0."""
    server = start_server(tmp_path / "refused.log", **environment)
    assert server.process.wait(timeout=90) == 1
    said = server.log.read_text()
    assert "Traceback" not in said
    return said


def test_a_spoiled_bundle_is_not_served(store: Path, tmp_path: Path) -> None:
    """Promises 3 and 7: tampered, missing, cut short, unknown, disagreeing."""
    source = read_bundle(resolve(store, "digits"))
    golden = source.golden()
    wrong = Golden(golden.raw, golden.logits[::-1], golden.probabilities[::-1], golden.labels)
    files = {name: source.read(name) for name in BUNDLE_FILES}
    forged = write_bundle(
        tmp_path / "forged", source.manifest, {**files, "golden.npz": wrong.encode()}
    )
    cases = {"golden.npz disagrees on cpu: row 0: expected": forged.path}
    for name, spoil in {
        "model.onnx: expected sha256": lambda p: (p / "model.onnx").write_bytes(
            files["model.onnx"][:-1] + b"x"
        ),
        "model.pt2: missing": lambda p: (p / "model.pt2").unlink(),
        "manifest.json: not JSON, or cut short": lambda p: (p / "manifest.json").write_text("{"),
        "expected schema_version 1, found 9": lambda p: (p / "manifest.json").write_text(
            '{"schema_version": 9}'
        ),
    }.items():
        target = tmp_path / f"case{len(cases)}"
        shutil.copytree(source.path, target)
        spoil(target)
        cases[name] = target
    for message, path in cases.items():
        said = refused(tmp_path, PARITYLINE_BUNDLE=str(path))
        assert message in said, said


def test_without_a_choice_the_names_are_listed(store: Path, tmp_path: Path) -> None:
    said = refused(tmp_path, PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="")
    assert "there are: breast-cancer, digits" in said
    said = refused(tmp_path, PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="nothing")
    assert "no bundle named 'nothing'" in said


def test_a_device_or_setting_that_is_not_there_is_an_error(store: Path, tmp_path: Path) -> None:
    environment = {"PARITYLINE_STORE": str(store), "PARITYLINE_BUNDLE": "digits"}
    said = refused(tmp_path, PARITYLINE_BACKEND="tensorrt", **environment)
    assert "PARITYLINE_BACKEND: expected one of onnx, torchscript, export, eager" in said
    said = refused(tmp_path, PARITYLINE_MAX_BODY_BYTES="much", **environment)
    assert "PARITYLINE_MAX_BODY_BYTES: expected a whole number" in said
    said = refused(tmp_path, PARITYLINE_DEVICE="cuda", CUDA_VISIBLE_DEVICES="", **environment)
    assert "device cuda was asked for" in said


@pytest.mark.parametrize("backend", ["torchscript", "export", "eager"])
def test_other_backends_answer_within_the_tolerance(
    store: Path, tmp_path: Path, digits: Predictor, backend: str
) -> None:
    server = start_server(
        tmp_path / "log",
        PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="digits", PARITYLINE_BACKEND=backend,
    )  # fmt: skip
    try:
        wait_until_ready(server)
        with server.client() as client:
            assert client.get("/model").json()["backend"] == backend
            body = {"instances": digits.golden.raw[:40, 0].tolist()}
            answer = probabilities_in(client.post("/predict", json=body), digits)
            np.testing.assert_allclose(answer, digits.golden.probabilities[:40], atol=1e-4)
    finally:
        assert stop_server(server) == 0


def test_the_curl_line_at_start_works(serve: Serve, digits: Predictor) -> None:
    lines = serve("digits").log.read_text().splitlines()
    command = next(line for line in lines if line.startswith("curl "))
    command = command.replace("localhost", "127.0.0.1")
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)["predictions"][0]
    assert answer["index"] == digits.golden.probabilities[0].argmax()
