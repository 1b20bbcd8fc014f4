"""The routes of the Open Inference Protocol that do not infer: health, metadata, statistics.

Every one that an unmodified `tritonclient.http` calls. What a Triton server would let callers
change is fixed here when the service starts, and says so with 501.

`app.state.worker` has the model, and says whether it takes requests (`serving.worker`). The app's
handlers turn HTTPException and DataError into `{"error": "..."}`.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from artifacts.errors import DataError
from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from serving.oip import InferenceProtocol
from serving.oip_documents import (
    Statistics,
    log_settings,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    trace_settings,
)
from serving.oip_plan import shown
from serving.oip_tensors import explain

_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"


class OfferedModel(Protocol):
    """What these routes need of `app.state.worker.model`."""

    @property
    def predictor(self) -> Predictor:
        """The bundle on its backend."""

    @property
    def protocol(self) -> InferenceProtocol:
        """The model's codec."""

    def statistics(self) -> Statistics:
        """What all workers have done with it so far."""


class _IndexRequest(msgspec.Struct):
    ready: bool = False


def oip_routes() -> list[Route]:
    """Routes below /v2, without infer."""
    routes = [
        Route("/v2", server, methods=["GET"]),
        Route("/v2/health/live", live, methods=["GET"]),
        Route("/v2/health/ready", ready, methods=["GET"]),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", load, methods=["POST"]),
        Route("/v2/logging", logging, methods=["GET"]),
        Route("/v2/logging", change_settings, methods=["POST"]),
        # Before the model's own, whose name would be "stats".
        Route("/v2/models/stats", stats, methods=["GET"]),
    ]
    for model in (_MODEL, _VERSION):
        routes += [
            Route(model, metadata, methods=["GET"]),
            Route(f"{model}/ready", model_ready, methods=["GET"]),
            Route(f"{model}/config", config, methods=["GET"]),
            Route(f"{model}/stats", stats, methods=["GET"]),
        ]
    for path in ("/v2/trace/setting", f"{_MODEL}/trace/setting"):
        routes += [
            Route(path, tracing, methods=["GET"]),
            Route(path, change_settings, methods=["POST"]),
        ]
    for memory in ("/v2/systemsharedmemory", "/v2/cudasharedmemory"):
        routes += [
            Route(f"{memory}/status", shared_memory, methods=["GET"]),
            Route(f"{memory}/region/{{region}}/status", shared_memory, methods=["GET"]),
            Route(f"{memory}/region/{{region}}/register", register, methods=["POST"]),
            Route(f"{memory}/region/{{region}}/unregister", unregister, methods=["POST"]),
            Route(f"{memory}/unregister", unregister, methods=["POST"]),
        ]
    return routes


async def server(_: Request) -> Response:
    """GET /v2."""
    return _json(server_metadata())


async def live(_: Request) -> Response:
    """GET /v2/health/live: answered by a process that is alive."""
    return _json({"live": True})


async def ready(request: Request) -> Response:
    """GET /v2/health/ready: 503 before the model is checked, and when the service stops."""
    _check_ready(request)
    return _json({"ready": True})


async def model_ready(request: Request) -> Response:
    """GET /v2/models/NAME[/versions/VERSION]/ready."""
    manifest = named_manifest(request)
    _check_ready(request)
    return _json({"name": manifest.name, "ready": True})


async def metadata(request: Request) -> Response:
    """GET /v2/models/NAME[/versions/VERSION]."""
    return _json(model_metadata(named_manifest(request), _model(request).predictor.backend))


async def config(request: Request) -> Response:
    """GET /v2/models/NAME[/versions/VERSION]/config."""
    model = _model(request)
    manifest = named_manifest(request)
    return _json(model_config(manifest, model.predictor.backend, max_rows=model.protocol.max_rows))


async def stats(request: Request) -> Response:
    """GET /v2/models[/NAME[/versions/VERSION]]/stats."""
    return _json(model_statistics(named_manifest(request), _model(request).statistics()))


async def index(request: Request) -> Response:
    """POST /v2/repository/index: `{"ready": true}` asks for models that are ready only."""
    body = await request.body()
    try:
        asked = msgspec.json.decode(body or b"{}", type=_IndexRequest)
    except msgspec.ValidationError as error:
        raise DataError(explain(error, "the request")) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the request is not JSON: {error}") from error
    manifest = _model(request).predictor.manifest
    is_ready: bool = request.app.state.worker.ready
    return _json(repository_index(manifest, ready=is_ready, only_ready=asked.ready))


async def load(request: Request) -> Response:
    """POST /v2/repository/models/NAME/load and unload: which model is served is not for callers."""
    manifest = _model(request).predictor.manifest
    raise HTTPException(
        501,
        f"this service has {manifest.reference}; another version is taken up after `parityline "
        f"promote {manifest.name}@VERSION` and SIGHUP to the service, without a restart",
    )


async def tracing(request: Request) -> Response:
    """GET /v2[/models/NAME]/trace/setting."""
    named_manifest(request)
    return _json(trace_settings())


async def logging(_: Request) -> Response:
    """GET /v2/logging."""
    return _json(log_settings())


async def change_settings(_: Request) -> Response:
    """POST to the settings of traces and logs."""
    raise HTTPException(501, "these settings are fixed when the service starts; GET shows them")


async def shared_memory(request: Request) -> Response:
    """GET the shared memory that is registered: none, and no region of any name."""
    region = request.path_params.get("region")
    if region is not None:
        raise HTTPException(404, f"no shared memory region {shown(region)} is registered")
    return _json([])


async def register(_: Request) -> Response:
    """POST a region of shared memory."""
    raise HTTPException(501, "shared memory is not offered; send tensors in the request")


async def unregister(_: Request) -> Response:
    """POST that a region, or all, be forgotten: done, as none is there (Triton answers 200 too)."""
    return Response(status_code=200)


def _model(request: Request) -> OfferedModel:
    model: OfferedModel = request.app.state.worker.model
    return model


def named_manifest(request: Request) -> Manifest:
    """The manifest of the model that the path names, or of the only one; 404 for any other."""
    manifest = _model(request).predictor.manifest
    found = request.path_params
    if found.get("name", manifest.name) != manifest.name:
        raise HTTPException(
            404, f"model {shown(found['name'])}: not here; this service has {manifest.reference}"
        )
    if found.get("version", manifest.version) != manifest.version:
        raise HTTPException(
            404,
            f"version {shown(found['version'])} of {manifest.name}: not here; this service has "
            f"{manifest.reference}",
        )
    return manifest


def _check_ready(request: Request) -> None:
    if not request.app.state.worker.ready:
        reference = _model(request).predictor.manifest.reference
        raise HTTPException(503, f"{reference} is not ready to take requests")


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
