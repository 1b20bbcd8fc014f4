"""The routes of the page: itself, its files, its examples and the bundle's report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from artifacts.errors import DataError
from serving.exchange import Reply
from serving.page.files import (
    EXAMPLE_HEADERS,
    PAGE_HEADERS,
    REPORT_HEADERS,
    REPORT_SIGN_IN_HEADERS,
    static_files,
    template,
)
from serving.page.page import Page


def page_routes() -> list[Route]:
    """/, /report and what is below /page."""
    return [
        Route("/", page, methods=["GET"]),
        Route("/report", report, methods=["GET"]),
        Route("/page/examples/{version}/{index:int}.png", example, methods=["GET"]),
        Route("/page/{name}", file, methods=["GET"]),
    ]


def is_open(path: str) -> bool:
    """Whether a path is that of one of the page's files, which tell nothing of the model."""
    return path.startswith("/page/") and path.removeprefix("/page/") in static_files()


def sign_in(path: str) -> Reply | None:
    """What a browser gets without a token instead of what the page is or links to: a field for one.

    With one, its script shows there what the path has. None for all other paths.
    """
    if path not in ("/", "/report", "/metrics", "/model", "/docs.json"):
        return None
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "WWW-Authenticate": "Bearer",
        **(REPORT_SIGN_IN_HEADERS if path == "/report" else PAGE_HEADERS),
    }
    head = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
    return Reply(401, template("token.html").encode(), head.encode("latin-1"))


def _served(request: Request) -> Page:
    found: Page = request.app.state.worker.model.page
    return found


async def page(request: Request) -> Response:
    """GET /: what this model is, and trying it."""
    url = str(request.base_url).rstrip("/")
    return HTMLResponse(await _found(_served(request).render, url), headers=PAGE_HEADERS)


async def report(request: Request) -> Response:
    """GET /report: the bundle's report.html, its bytes verified."""
    return HTMLResponse(await _found(_served(request).report), headers=REPORT_HEADERS)


async def example(request: Request) -> Response:
    """GET /page/examples/VERSION/INDEX.png: a held-out picture."""
    page, path = _served(request), request.path_params
    content = await _found(page.example, path["version"], path["index"])
    return Response(content, media_type="image/png", headers=EXAMPLE_HEADERS)


async def file(request: Request) -> Response:
    """GET /page/NAME: one of the page's own files."""
    found = static_files().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404, f"no route {request.url.path}; see /docs.json")
    known = request.headers.get("if-none-match", "").split(",")
    if found.headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known):
        return Response(status_code=304, headers=found.headers)
    return Response(found.content, headers=found.headers)


async def _found(make: Callable[..., bytes], *given: object) -> bytes:
    """What takes longer than predictions may wait for, made in a thread."""
    try:
        return await asyncio.to_thread(make, *given)
    except DataError as error:
        raise HTTPException(404, str(error)) from error
