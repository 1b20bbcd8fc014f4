"""The routes inside this process, where threads and queues can be watched."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette

from artifacts.pixels import decode_images, encode_png
from artifacts.predictor import Predictor
from serving.batcher import Overloaded
from serving.decoding import DecodingThread
from serving.routes import build_app, serve_model
from serving.settings import Settings


@asynccontextmanager
async def client_of(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def test_pictures_are_decoded_beside_the_event_loop(
    digits: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def watched(*given: object, **options: object):
        threads.append(threading.current_thread().name)
        return decode_images(*given, **options)

    monkeypatch.setattr("serving.wire.decode_images", watched)
    monkeypatch.setattr("serving.routes.decode_images", watched)
    app = build_app()
    app.state.model = serve_model(digits, Settings())
    png = encode_png(digits.golden.raw[0])

    async def scenario() -> None:
        async with client_of(app) as client:
            body = {"instances": [{"b64": base64.b64encode(png).decode()}]}
            for response in (
                await client.post("/predict", json=body),
                await client.post("/predict/image", content=png),
                await client.post("/predict/image", files=[("files", ("a.png", png))]),
            ):
                assert response.status_code == 200, response.text

    asyncio.run(scenario())
    assert len(threads) == 3 and all(name.startswith("decode") for name in threads)


def test_all_pictures_of_a_request_together_are_limited_on_every_route(digits: Predictor) -> None:
    app = build_app()
    app.state.model = serve_model(digits, Settings(max_pixels=100))
    png = encode_png(digits.golden.raw[0])
    b64 = {"b64": base64.b64encode(png).decode()}

    async def scenario() -> None:
        async with client_of(app) as client:
            for count, status in ((1, 200), (2, 400)):
                for place, response in (
                    (
                        "instances[1].b64",
                        await client.post("/predict", json={"instances": [b64] * count}),
                    ),
                    (
                        "files[1]",
                        await client.post(
                            "/predict/image", files=[("files", ("a.png", png))] * count
                        ),
                    ),
                ):
                    assert response.status_code == status, response.text
                    if status == 400:
                        assert (
                            response.json()["error"]
                            == f"{place}: expected at most 100 pixels in all pictures together"
                        )

    asyncio.run(scenario())


def test_an_overloaded_service_answers_503_and_when_to_come_back(digits: Predictor) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        started.set()
        assert release.wait(10)
        return digits.model(raw)

    app = build_app()
    app.state.model = serve_model(replace(digits, model=slow), Settings(max_queue_rows=1))
    body = {"instances": digits.golden.raw[:1, 0].tolist()}

    async def scenario() -> list[httpx.Response]:
        async with client_of(app) as client:
            first = asyncio.create_task(client.post("/predict", json=body))
            await asyncio.to_thread(started.wait, 10)
            waits = asyncio.create_task(client.post("/predict", json=body))
            while not app.state.model.batcher._queued_rows:
                await asyncio.sleep(0.01)
            refused = await client.post("/predict", json=body)
            release.set()
            return [await first, await waits, refused]

    first, waits, refused = asyncio.run(scenario())
    assert (first.status_code, waits.status_code, refused.status_code) == (200, 200, 503)
    assert int(refused.headers["retry-after"]) >= 1 and "overloaded" in refused.json()["error"]


def test_only_so_many_requests_wait_to_be_decoded() -> None:
    release = threading.Event()

    async def scenario() -> list[object]:
        decoding = DecodingThread(max_waiting=2)
        calls = [asyncio.create_task(decoding.run(release.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.05)
        release.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert await decoding.run(int, "7") == 7
        decoding.close()
        return answers

    answers = asyncio.run(scenario())
    assert answers[:2] == [True, True] and isinstance(answers[2], Overloaded)
