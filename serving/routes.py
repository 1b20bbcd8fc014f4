"""The HTTP routes, as a Starlette app that BentoML mounts at /.

`app.state.model` is set by the service before the app starts; see `ServedModel`.
Every answer is JSON, errors `{"error": "..."}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.pixels import decode_images
from artifacts.predictor import Predictor
from serving.batcher import Batcher, Overloaded
from serving.decoding import DecodingThread
from serving.limits import LimitBody
from serving.openapi import openapi_document
from serving.page import render_page
from serving.settings import Settings
from serving.wire import RequestDecoder, response_encoder

# Parsing a larger body takes longer than handing it to a thread.
_PARSE_IN_THREAD_BYTES = 64 * 1024
_MAX_FILES = 1000
_MAX_DECODING = 64
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(frozen=True)
class ServedModel:
    """A predictor with what its requests need, made once when a worker starts."""

    predictor: Predictor
    settings: Settings
    batcher: Batcher
    decoding: DecodingThread
    decoder: RequestDecoder
    encode: Callable[[np.ndarray, int | None], bytes]
    description: bytes
    openapi: bytes


def serve_model(predictor: Predictor, settings: Settings) -> ServedModel:
    """The predictor with its queue, decoder, encoder and documents."""
    manifest = predictor.manifest
    about = {**manifest.public(), "backend": predictor.backend, "device": predictor.device}
    return ServedModel(
        predictor=predictor,
        settings=settings,
        batcher=Batcher(
            predictor.run,
            max_batch_rows=manifest.max_batch_size,
            max_queue_rows=settings.max_queue_rows,
        ),
        decoding=DecodingThread(max_waiting=_MAX_DECODING),
        decoder=RequestDecoder(
            manifest, max_rows=settings.max_rows, max_pixels=settings.max_pixels
        ),
        encode=response_encoder(manifest),
        description=msgspec.json.encode(about),
        openapi=msgspec.json.encode(openapi_document(manifest, predictor.golden)),
    )


def build_app() -> Starlette:
    """The app, without a model: `app.state.model` must be set before its lifespan starts."""
    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/predict/image", predict_image, methods=["POST"]),
        Route("/model", describe_model, methods=["GET"]),
        Route("/docs.json", describe_api, methods=["GET"]),
        Route("/", page, methods=["GET"]),
        # BentoML's own routes for health and metrics come before all of these.
        Route("/{path:path}", no_route, methods=_METHODS),
    ]
    return Starlette(
        routes=routes,
        lifespan=_lifespan,
        middleware=[Middleware(LimitBody)],
        exception_handlers={
            DataError: _data_error,
            Overloaded: _overloaded,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        },
    )


async def predict(request: Request) -> Response:
    """POST /predict: `{"instances": [...], "top_k": K}`."""
    model: ServedModel = request.app.state.model
    body = await request.body()
    # A few bytes can hold a picture that takes a second to decode.
    takes_pictures = isinstance(model.predictor.manifest.input, ImageInput)
    if takes_pictures or len(body) > _PARSE_IN_THREAD_BYTES:
        parsed = await model.decoding.run(model.decoder.decode, body)
    else:
        parsed = model.decoder.decode(body)
    return await _answer(model, parsed.raw, parsed.top_k)


async def predict_image(request: Request) -> Response:
    """POST /predict/image: one encoded picture as the body, or several as multipart `files`."""
    model: ServedModel = request.app.state.model
    spec = model.predictor.manifest.input
    if not isinstance(spec, ImageInput):
        raise HTTPException(404, "this model takes table rows, not pictures: POST /predict")
    top_k = _query_top_k(request, len(model.predictor.manifest.labels))
    encoded: list[tuple[str, bytes]]
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        encoded = await _uploaded_files(request, model.settings.max_body_bytes)
    else:
        encoded = [("the body", await request.body())]
    raw = await model.decoding.run(_decode, encoded, spec, model.settings.max_pixels)
    return await _answer(model, raw, top_k)


async def describe_model(request: Request) -> Response:
    """GET /model: the public part of the manifest, with backend and device."""
    return _json(request.app.state.model.description)


async def describe_api(request: Request) -> Response:
    """GET /docs.json: the OpenAPI document of this very model."""
    return _json(request.app.state.model.openapi)


async def page(request: Request) -> Response:
    """GET /: what this model is."""
    predictor: Predictor = request.app.state.model.predictor
    url = str(request.base_url).rstrip("/")
    content = render_page(predictor.manifest, predictor.golden, predictor.device, url)
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(content, headers=headers)


async def no_route(request: Request) -> Response:
    """Any other path, or another method on one of ours."""
    for route in request.app.routes:
        if isinstance(route, Route) and route.path == request.url.path:
            allowed = ", ".join(sorted(route.methods or ()))
            raise HTTPException(
                405, f"{route.path} takes {allowed}, not {request.method}", {"Allow": allowed}
            )
    raise HTTPException(404, f"no route {request.url.path}; see /docs.json")


async def _answer(model: ServedModel, raw: np.ndarray, top_k: int | None) -> Response:
    _, probabilities = await model.batcher.submit(raw)
    if len(raw) > 256:
        return _json(await asyncio.to_thread(model.encode, probabilities, top_k))
    return _json(model.encode(probabilities, top_k))


async def _uploaded_files(request: Request, max_body_bytes: int) -> list[tuple[str, bytes]]:
    form = request.form(max_files=_MAX_FILES, max_fields=10, max_part_size=max_body_bytes)
    async with form as fields:
        names = set(fields)
        if names != {"files"}:
            raise DataError(f"expected multipart files in the field 'files', found {sorted(names)}")
        uploads = fields.getlist("files")
        encoded = []
        for index, upload in enumerate(uploads):
            if not isinstance(upload, UploadFile):
                raise DataError(f"files[{index}]: expected a file, found a text field")
            encoded.append((f"files[{index}]", await upload.read()))
        return encoded


def _decode(encoded: list[tuple[str, bytes]], spec: ImageInput, max_pixels: int) -> np.ndarray:
    pictures = [data for _, data in encoded]
    raw, bad = decode_images(pictures, spec, max_pixels=max_pixels, max_total_pixels=max_pixels)
    for position, reason in bad.items():
        raise DataError(f"{encoded[position][0]}: {reason}")
    return raw


def _query_top_k(request: Request, classes: int) -> int | None:
    text = request.query_params.get("top_k")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= classes:
        raise DataError(f"top_k: expected a whole number from 1 to {classes}, found {text!r}")
    return int(text)


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    model: ServedModel = app.state.model
    async with model.batcher.running():
        yield
    model.decoding.close()


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return _json(msgspec.json.encode({"error": message}), status, headers)


async def _data_error(_: Request, error: Exception) -> Response:
    return _error(HTTPStatus.BAD_REQUEST, str(error))


async def _overloaded(_: Request, error: Exception) -> Response:
    return _error(
        HTTPStatus.SERVICE_UNAVAILABLE, f"overloaded: {error}; try again", {"Retry-After": "1"}
    )


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _disconnected(_: Request, __: Exception) -> Response:
    # Nobody reads it; the server needs an answer all the same.
    return _error(HTTPStatus.BAD_REQUEST, "the client closed the connection")


async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more")
