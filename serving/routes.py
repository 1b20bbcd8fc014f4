"""The HTTP routes, as a Starlette app that BentoML mounts at /.

`app.state.worker` is set by `serving.lifecycle` before the app starts. Predictions come this way
only as multipart forms, or where BentoML traces them: see `serving.connection` for the short one.
Answers are JSON, but for `serving.page`; errors are `{"error": "..."}`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import StatelessLifespan

from artifacts.errors import DataError
from serving.exchange import Exchange, Reply, error_reply
from serving.oip_routes import named_manifest, oip_routes
from serving.overload import Overloaded
from serving.page.routes import page_routes

if TYPE_CHECKING:
    from serving.worker import Worker

SERVICE = "Classifier"
_MAX_FILES = 1000
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# BentoML's own, which come before those of this app.
_HEALTH = ("/livez", "/readyz", "/healthz")
_PREDICTIONS = (
    "/predict",
    "/predict/image",
    "/v2/models/{name}/infer",
    "/v2/models/{name}/versions/{version}/infer",
)


def build_app(lifespan: StatelessLifespan[Starlette]) -> Starlette:
    """The app; its lifespan sets `app.state.worker`."""
    routes = [
        *(Route(path, predict, methods=["POST"]) for path in _PREDICTIONS),
        *oip_routes(),
        Route("/model", describe_model, methods=["GET"]),
        Route("/docs.json", describe_api, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *page_routes(),
        Route("/{path:path}", no_route, methods=_METHODS),
    ]
    refused = (DataError, Overloaded, HTTPException, Exception)
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={**dict.fromkeys(refused, _error), ClientDisconnect: _disconnected},
    )


async def predict(request: Request) -> Response:
    """POST of a prediction, by its path."""
    worker: Worker = request.app.state.worker
    path: str = request.scope["path"]
    if not worker.takes(path):
        if path == "/predict/image":
            raise HTTPException(404, "this model takes table rows, not pictures: POST /predict")
        # A path of the inference protocol names a model that is not here.
        named_manifest(request)
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    if multipart and path == "/predict/image":
        return await _predict_form(request, worker)
    headers = dict(request.scope["headers"])
    exchange = _Awaited(path, request.url.query, headers, await request.body())
    worker.begin(path, exchange)
    try:
        return _response(await exchange.future)
    finally:
        exchange.cancel()


class _Awaited(Exchange):
    """An exchange whose reply a coroutine waits for."""

    __slots__ = ("future",)

    def __init__(self, path: str, query: str, headers: dict[bytes, bytes], body: bytes) -> None:
        super().__init__(path, query, headers, body)
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def send(self, reply: Reply) -> None:
        # Cancelled with the task that waits, in this same turn of the loop.
        if not self.future.done():
            self.future.set_result(reply)


async def _predict_form(request: Request, worker: Worker) -> Response:
    """POST /predict/image with multipart `files`."""
    max_part_size = worker.settings.max_body_bytes
    form = request.form(max_files=_MAX_FILES, max_fields=10, max_part_size=max_part_size)
    pictures = []
    try:
        async with form as fields:
            names = set(fields)
            if names != {"files"}:
                message = f"expected multipart files in the field 'files', found {sorted(names)}"
                raise DataError(message)
            for index, upload in enumerate(fields.getlist("files")):
                if not isinstance(upload, UploadFile):
                    raise DataError(f"files[{index}]: expected a file, found a text field")
                pictures.append((f"files[{index}]", await upload.read()))
    # Of a character set by which nothing can be read.
    except UnicodeError as error:
        raise DataError(f"multipart form: {error}") from error
    exchange = _Awaited("/predict/image", request.url.query, {}, b"")
    exchange.files = pictures
    worker.begin("/predict/image", exchange)
    try:
        return _response(await exchange.future)
    finally:
        exchange.cancel()


async def describe_model(request: Request) -> Response:
    """GET /model: the public part of the manifest, with backend and device."""
    return _json(request.app.state.worker.model.description)


async def describe_api(request: Request) -> Response:
    """GET /docs.json: the OpenAPI document of this very model."""
    return _json(request.app.state.worker.model.openapi)


async def metrics(request: Request) -> Response:
    """GET /metrics: of all workers together."""
    worker: Worker = request.app.state.worker
    worker.counts()
    content = await asyncio.to_thread(worker.metrics.exposition, SERVICE)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def no_route(request: Request) -> Response:
    """Any other path, or another method on one of ours."""
    path: str = request.scope["path"]
    allowed: set[str] = {"GET"} if path in _HEALTH else set()
    for route in request.app.routes[:-1]:
        if route.matches(request.scope)[0] == Match.PARTIAL:
            allowed |= route.methods or set()
    if allowed:
        shown = ", ".join(sorted(allowed))
        raise HTTPException(405, f"{path} takes {shown}, not {request.method}", {"Allow": shown})
    raise HTTPException(404, f"no route {path}; see /docs.json")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers)


async def _error(request: Request, error: Exception) -> Response:
    return _response(error_reply(error))


async def _disconnected(request: Request, _: Exception) -> Response:
    # Nobody reads it; the server needs an answer all the same.
    return _response(error_reply(DataError("the client closed the connection")))
