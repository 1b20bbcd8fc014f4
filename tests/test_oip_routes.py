"""The Open Inference Protocol's routes beside infer, in this process, on a released bundle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from artifacts.errors import DataError
from artifacts.predictor import Predictor, open_bundle
from serving.oip import InferenceProtocol
from serving.oip_documents import Statistics, model_config, model_metadata
from serving.oip_routes import oip_routes
from tests.conftest import ROOT
from tests.oip import GRAY, MIXED, manifest_of

STATISTICS = Statistics(
    last_inference_ms=17, inference_count=9, execution_count=2, success_count=5, success_ns=50,
    fail_count=1, fail_ns=10, queue_count=6, queue_ns=60, compute_count=2, compute_ns=20,
)  # fmt: skip


@dataclass(frozen=True)
class Offered:
    predictor: Predictor
    protocol: InferenceProtocol

    def statistics(self) -> Statistics:
        return STATISTICS


@pytest.fixture(scope="module")
def app() -> Starlette:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 400
        message = error.detail if isinstance(error, HTTPException) else str(error)
        return JSONResponse({"error": message}, status)

    app = Starlette(
        routes=list(oip_routes()), exception_handlers={HTTPException: answer, DataError: answer}
    )
    predictor = open_bundle(str(ROOT / "tests" / "fixtures" / "released" / "schema-1-mlp"))
    protocol = InferenceProtocol(predictor.manifest, max_rows=77)
    app.state.worker = SimpleNamespace(model=Offered(predictor, protocol), ready=True)
    return app


def call(app: Starlette, method: str, path: str, content: bytes = b"") -> httpx.Response:
    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(scenario())


def get(app: Starlette, path: str) -> Any:
    response = call(app, "GET", path)
    assert response.status_code == 200, response.text
    return response.json()


def paths_of(app: Starlette, end: str) -> list[str]:
    """The ways to name the model: alone, and with its version."""
    manifest = app.state.worker.model.predictor.manifest
    name = f"/v2/models/{manifest.name}"
    return [name + end, f"{name}/versions/{manifest.version}{end}"]


def test_the_server_names_itself_and_what_it_offers(app: Starlette) -> None:
    found = get(app, "/v2")
    assert found["name"] == "parityline" and found["version"]
    assert "binary_tensor_data" in found["extensions"]
    assert "system_shared_memory" not in found["extensions"]


def test_a_service_that_is_not_ready_lives_and_takes_no_requests(app: Starlette) -> None:
    paths = ["/v2/health/ready", *paths_of(app, "/ready")]
    index = ("POST", "/v2/repository/index")
    try:
        for ready in (True, False):
            app.state.worker.ready = ready
            assert call(app, "GET", "/v2/health/live").status_code == 200
            for path in paths:
                assert call(app, "GET", path).status_code == (200 if ready else 503)
            (entry,) = call(app, *index).json()
            assert entry["state"] == ("READY" if ready else "UNAVAILABLE")
            assert len(call(app, *index, b'{"ready": true}').json()) == ready
            assert len(call(app, *index, b'{"ready": false}').json()) == 1
    finally:
        app.state.worker.ready = True


def test_metadata_and_configuration_are_those_of_the_bundle(app: Starlette) -> None:
    predictor = app.state.worker.model.predictor
    for path in paths_of(app, ""):
        found = get(app, path)
        assert found == model_metadata(predictor.manifest, "onnx")
        assert (found["name"], found["versions"]) == (
            predictor.manifest.name,
            [predictor.manifest.version],
        )
    for path in paths_of(app, "/config"):
        assert get(app, path)["max_batch_size"] == 77


def test_tensors_are_told_as_they_are_taken() -> None:
    images = model_metadata(manifest_of(GRAY, "a", "b", "c"), "onnx")
    assert images["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, 2, 3]}]
    assert images["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]
    table = model_metadata(manifest_of(MIXED), "onnx")
    assert {column["name"]: column["datatype"] for column in table["inputs"]} == {
        "size": "FP64", "weight": "FP64", "new": "BYTES", "kind": "BYTES", "day": "BYTES",
    }  # fmt: skip
    config = model_config(manifest_of(MIXED), "onnx", max_rows=5)
    assert config["input"][3] == {"name": "kind", "data_type": "TYPE_STRING", "dims": [1]}
    assert config["output"][1] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [2]}
    assert model_config(manifest_of(GRAY), "onnx", max_rows=5)["input"] == [
        {"name": "images", "data_type": "TYPE_UINT8", "dims": [1, 2, 3], "format": "FORMAT_NCHW"}
    ]


def test_statistics_are_those_of_the_worker(app: Starlette) -> None:
    manifest = app.state.worker.model.predictor.manifest
    for path in (*paths_of(app, "/stats"), "/v2/models/stats"):
        (found,) = get(app, path)["model_stats"]
        assert (found["name"], found["version"]) == (manifest.name, manifest.version)
        assert (found["inference_count"], found["execution_count"]) == (9, 2)
        assert found["last_inference"] == 17
        counts = {
            name: (stat["count"], stat["ns"])
            for name, stat in found["inference_stats"].items()
            if stat["count"]
        }
        assert counts == {
            "success": (5, 50), "fail": (1, 10), "queue": (6, 60), "compute_infer": (2, 20),
        }  # fmt: skip


@pytest.mark.parametrize("end", ["", "/ready", "/config", "/stats", "/trace/setting"])
def test_another_model_or_version_is_404_and_names_the_one_there_is(
    app: Starlette, end: str
) -> None:
    manifest = app.state.worker.model.predictor.manifest
    paths = [f"/v2/models/other{end}", f"/v2/models/{'x' * 999}{end}"]
    if end != "/trace/setting":
        paths.append(f"/v2/models/{manifest.name}/versions/1{end}")
    for path in paths:
        response = call(app, "GET", path)
        assert response.status_code == 404
        assert manifest.reference in response.json()["error"]
        assert len(response.text) < 300


def test_what_is_fixed_at_the_start_cannot_be_changed(app: Starlette) -> None:
    manifest = app.state.worker.model.predictor.manifest
    for path, message in (
        (f"/v2/repository/models/{manifest.name}/load", "parityline promote"),
        (f"/v2/repository/models/{manifest.name}/unload", "parityline promote"),
        ("/v2/logging", "fixed when the service starts"),
        ("/v2/trace/setting", "fixed when the service starts"),
        (f"/v2/models/{manifest.name}/trace/setting", "fixed when the service starts"),
        ("/v2/systemsharedmemory/region/a/register", "shared memory is not offered"),
        ("/v2/cudasharedmemory/region/a/register", "shared memory is not offered"),
    ):
        response = call(app, "POST", path, b"{}")
        assert response.status_code == 501
        assert message in response.json()["error"]
    assert get(app, "/v2/logging")["log_error"] is True
    assert get(app, "/v2/trace/setting")["trace_level"] == ["OFF"]


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_no_shared_memory_is_registered(app: Starlette, kind: str) -> None:
    memory = f"/v2/{kind}sharedmemory"
    assert get(app, f"{memory}/status") == []
    response = call(app, "GET", f"{memory}/region/mine/status")
    assert response.status_code == 404 and "'mine'" in response.json()["error"]
    for path in (f"{memory}/unregister", f"{memory}/region/mine/unregister"):
        assert call(app, "POST", path).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": "yes"}', b"\xff", b"[" * 100_000])
def test_an_index_request_that_is_none_is_refused(app: Starlette, body: bytes) -> None:
    response = call(app, "POST", "/v2/repository/index", body)
    assert response.status_code == 400
    assert "the request" in response.json()["error"]
