"""A real `bentoml serve` process over HTTP: its answers."""

from __future__ import annotations

import base64
import concurrent.futures

import httpx
import numpy as np

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from tests.answers import Serve, probabilities_in, rows_of


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
