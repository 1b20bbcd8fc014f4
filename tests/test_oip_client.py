"""An unmodified Triton client against a real server: every call that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from artifacts.predictor import Predictor
from tests.answers import Serve
from tests.oip import tensor

NAMES = ("logits", "probabilities", "label")


@contextmanager
def client_of(serve: Serve, name: str) -> Iterator[InferenceServerClient]:
    url = serve(name).url.removeprefix("http://")
    with InferenceServerClient(url, concurrency=4) as client:
        yield client


def images(pixels: np.ndarray, *, binary: bool = True) -> list[InferInput]:
    return [tensor("images", pixels, "UINT8", binary=binary)]


def columns(predictor: Predictor, raw: np.ndarray, *, binary: bool = True) -> list[InferInput]:
    """A table's rows, float64 [N, C], as one input a column."""
    names = [column.name for column in predictor.manifest.input.columns]
    return [
        tensor(name, np.ascontiguousarray(cells), "FP64", binary=binary)
        for name, cells in zip(names, raw.T, strict=True)
    ]


def check_answer(result: InferResult, predictor: Predictor, raw: np.ndarray) -> None:
    """All outputs, bit for bit those of the model."""
    logits, probabilities = predictor.run(raw)
    np.testing.assert_array_equal(result.as_numpy("logits"), logits)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), probabilities)
    found = [text if isinstance(text, str) else text.decode() for text in result.as_numpy("label")]
    assert found == [predictor.manifest.labels[index] for index in probabilities.argmax(axis=1)]
    response = result.get_response()
    assert response["model_name"] == predictor.manifest.name
    assert response["model_version"] == predictor.manifest.version


def test_pictures_have_the_models_bits_alone_and_in_any_batch(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    with client_of(serve, "digits") as client:
        for rows in (1, 2, 7, len(pictures)):
            for binary in (True, False):
                inputs = images(pictures[:rows], binary=binary)
                check_answer(client.infer("digits", inputs), digits, pictures[:rows])
                json_outputs = [InferRequestedOutput(name, binary_data=False) for name in NAMES]
                result = client.infer("digits", inputs, outputs=json_outputs)
                check_answer(result, digits, pictures[:rows])


def test_rows_of_a_table_have_the_models_bits_as_numbers_and_as_texts(
    serve: Serve, cancer: Predictor
) -> None:
    raw = cancer.golden.raw[:20]
    names = [column.name for column in cancer.manifest.input.columns]
    with client_of(serve, "breast-cancer") as client:
        for binary in (True, False):
            for rows in (raw, raw[:1]):
                result = client.infer("breast-cancer", columns(cancer, rows, binary=binary))
                check_answer(result, cancer, rows)
            texts = [
                tensor(name, np.array([[repr(cell).encode()] for cell in cells], dtype=np.object_),
                       "BYTES", binary=binary)
                for name, cells in zip(names, raw.T.tolist(), strict=True)
            ]  # fmt: skip
            check_answer(client.infer("breast-cancer", texts), cancer, raw)


def test_outputs_come_as_asked_with_the_requests_id(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    logits, probabilities = digits.run(pictures[:3])
    outputs = [
        InferRequestedOutput("label", binary_data=False),
        InferRequestedOutput("probabilities", class_count=2),
        InferRequestedOutput("logits", binary_data=True),
    ]
    with client_of(serve, "digits") as client:
        result = client.infer(
            "digits", images(pictures[:3]), model_version=digits.manifest.version, outputs=outputs,
            request_id="mine", priority=1, timeout=1000, parameters={"own": "x"},
        )  # fmt: skip
    response = result.get_response()
    assert response["id"] == "mine"
    assert [output["name"] for output in response["outputs"]] == [
        "label",
        "probabilities",
        "logits",
    ]
    np.testing.assert_array_equal(result.as_numpy("logits"), logits)
    classes = result.as_numpy("probabilities")
    assert classes.shape == (3, 2)
    for row, best in zip(probabilities, classes[:, 0], strict=True):
        value, index, label = best.decode().split(":")
        assert (int(index), label) == (row.argmax(), digits.manifest.labels[row.argmax()])
        assert np.float32(value) == row.max()


@pytest.mark.parametrize("request_form", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_form", [None, "gzip", "deflate"])
def test_bodies_may_be_compressed_both_ways(
    serve: Serve,
    digits: Predictor,
    pictures: np.ndarray,
    request_form: str | None,
    response_form: str | None,
) -> None:
    with client_of(serve, "digits") as client:
        for binary in (True, False):
            result = client.infer(
                "digits",
                images(pictures[:50], binary=binary),
                request_compression_algorithm=request_form,
                response_compression_algorithm=response_form,
            )
            check_answer(result, digits, pictures[:50])


def test_many_requests_at_once_get_their_own_answers(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    with client_of(serve, "digits") as client:
        waiting = [
            client.async_infer("digits", images(pictures[row : row + 2])) for row in range(40)
        ]
        for row, request in enumerate(waiting):
            check_answer(request.get_result(), digits, pictures[row : row + 2])


def test_a_body_made_by_hand_is_answered(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    """What the client sends and parses without its own connection, as other libraries use it."""
    body, length = InferenceServerClient.generate_request_body(images(pictures[:2]))
    path = f"/v2/models/digits/versions/{digits.manifest.version}/infer"
    with serve("digits").client() as client:
        headers = {"Inference-Header-Content-Length": str(length)}
        response = client.post(path, content=body, headers=headers)
        assert response.headers["content-type"] == "application/octet-stream"
        found = InferenceServerClient.parse_response_body(
            response.content,
            header_length=int(response.headers["inference-header-content-length"]),
        )
        check_answer(found, digits, pictures[:2])
        nested = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "UINT8"}
        response = client.post(path, json={"inputs": [{**nested, "data": pictures[:1].tolist()}]})
        assert response.headers["content-type"] == "application/json"
        assert "inference-header-content-length" not in response.headers
        found = InferenceServerClient.parse_response_body(response.content)
        check_answer(found, digits, pictures[:1])


def test_the_documents_example_has_the_models_bits(
    serve: Serve, digits: Predictor, cancer: Predictor
) -> None:
    for name, predictor in (("digits", digits), ("breast-cancer", cancer)):
        with serve(name).client() as client:
            paths = client.get("/docs.json").json()["paths"]
            path = f"/v2/models/{name}/infer"
            content = paths[path]["post"]["requestBody"]["content"]["application/json"]
            outputs = client.post(path, json=content["example"]).json()["outputs"]
            found = {output["name"]: np.float32(output["data"]) for output in outputs[:2]}
            logits, probabilities = predictor.run(predictor.golden.raw[:1])
            np.testing.assert_array_equal(found["logits"], logits[0])
            np.testing.assert_array_equal(found["probabilities"], probabilities[0])


def test_an_error_is_the_clients_exception_with_our_message(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    small = pictures[:1, :, :7]
    fine = images(pictures[:1])
    reference = digits.manifest.reference
    hidden = InferRequestedOutput("logits")
    hidden.set_shared_memory("region", 40)
    other = InferRequestedOutput("other")
    eleven = InferRequestedOutput("logits", class_count=11)
    shared = InferInput("images", [1, 1, 8, 8], "UINT8").set_shared_memory("region", 64)
    unknown = tensor("pixels", small, "UINT8")
    floats = tensor("images", pictures[:1].astype(np.float32), "FP32")
    with client_of(serve, "digits") as client:
        infer = partial(client.infer, "digits")
        cases: list[tuple[str, str, Callable[[], Any]]] = [
            ("400", "'images': expected shape [N, 1, 8, 8]", lambda: infer(images(small))),
            ("400", "missing input: 'images'", lambda: infer([])),
            ("400", "input 'pixels': not known", lambda: infer([unknown])),
            ("400", "'images': expected datatype UINT8", lambda: infer([floats])),
            ("400", "output 'other': not known", lambda: infer(fine, outputs=[other])),
            ("400", "classification of 1 to 10", lambda: infer(fine, outputs=[eleven])),
            ("400", "sequence_id: this model", lambda: infer(fine, sequence_id=1)),
            ("400", "'images': shared memory is not", lambda: infer([shared])),
            ("400", "'logits': shared memory is not", lambda: infer(fine, outputs=[hidden])),
            ("404", reference, lambda: client.infer("other", fine)),
            ("404", reference, lambda: infer(fine, model_version="1")),
            ("404", reference, lambda: client.get_model_metadata("other")),
            ("404", reference, lambda: client.get_model_config("digits", "1")),
            ("404", reference, lambda: client.get_inference_statistics("other")),
            ("404", "'region'", lambda: client.get_system_shared_memory_status("region")),
            ("404", "'region'", lambda: client.get_cuda_shared_memory_status("region")),
            ("501", "parityline promote digits@", lambda: client.load_model("digits", config="{}")),
            ("501", "parityline promote digits@", lambda: client.unload_model("digits")),
            ("501", "fixed when", lambda: client.update_trace_settings("digits", {"a": "1"})),
            ("501", "fixed when", lambda: client.update_log_settings({"log_info": True})),
            ("501", "not offered", lambda: client.register_system_shared_memory("a", "/b", 64)),
            ("501", "not offered", lambda: client.register_cuda_shared_memory("a", "AA", 0, 64)),
        ]
        for status, message, call in cases:
            with pytest.raises(InferenceServerException) as refused:
                call()
            assert refused.value.status() == status
            assert message in refused.value.message()
        waiting = client.async_infer("digits", images(small))
        with pytest.raises(InferenceServerException, match="expected shape"):
            waiting.get_result()
        # None of it is left behind.
        check_answer(client.infer("digits", fine), digits, pictures[:1])


def test_the_client_finds_the_service_and_its_model(serve: Serve, digits: Predictor) -> None:
    version = digits.manifest.version
    with client_of(serve, "digits") as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("digits") and client.is_model_ready("digits", version)
        assert not client.is_model_ready("digits", "1") and not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "parityline"
        for metadata in (
            client.get_model_metadata("digits"),
            client.get_model_metadata("digits", version),
        ):
            assert metadata["versions"] == [version]
            assert metadata["inputs"][0]["shape"] == [-1, 1, 8, 8]
        assert client.get_model_config("digits")["input"][0]["dims"] == [1, 8, 8]
        assert client.get_model_repository_index() == [
            {"name": "digits", "version": version, "state": "READY", "reason": ""}
        ]
        assert client.get_trace_settings("digits") == client.get_trace_settings()
        assert client.get_log_settings()["log_verbose_level"] == 0
        assert client.get_system_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status() == []
        client.unregister_system_shared_memory()
        client.unregister_system_shared_memory("region")
        client.unregister_cuda_shared_memory()
        client.unregister_cuda_shared_memory("region")


def test_statistics_count_rows_requests_and_failures(
    serve: Serve, digits: Predictor, pictures: np.ndarray
) -> None:
    with client_of(serve, "digits") as client:
        (before,) = client.get_inference_statistics()["model_stats"]
        client.infer("digits", images(pictures[:3]))
        with pytest.raises(InferenceServerException):
            client.infer("digits", images(pictures[:1, :, :7]))
        (after,) = client.get_inference_statistics("digits", digits.manifest.version)["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] == before["execution_count"] + 1
    assert after["last_inference"] >= before["last_inference"]
    for name in ("success", "fail", "queue", "compute_infer"):
        grown = {
            key: after["inference_stats"][name][key] - before["inference_stats"][name][key]
            for key in ("count", "ns")
        }
        assert grown["count"] == 1 and grown["ns"] >= 0, name
