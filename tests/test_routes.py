"""The app inside this process, without connections of ours: as BentoML traces predictions."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from artifacts.pixels import decode_images, encode_png
from artifacts.predictor import Predictor
from serving.decoding import DecodingThread
from serving.metrics import Metrics
from serving.overload import Overloaded
from serving.pace import Pace
from serving.routes import build_app
from serving.served import Prepared
from serving.settings import Settings
from serving.worker import Worker
from tests.answers import probabilities_in, rows_of
from tests.listening import IN_THREAD_S, ON_LOOP_S, PATIENCE_S, Gate


@asynccontextmanager
async def app_of(
    predictor: Predictor, folder: Path, row_s: float = ON_LOOP_S, **settings: int
) -> AsyncIterator[tuple[httpx.AsyncClient, Worker]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.worker = Worker(
            Prepared(predictor, Pace([1], [row_s])), Settings(**settings), Metrics(folder)  # type: ignore[arg-type]
        )  # fmt: skip
        yield
        await app.state.worker.close()

    app = build_app(lifespan)
    transport = httpx.ASGITransport(app)
    async with (
        asyncio.timeout(3 * PATIENCE_S),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, app.state.worker
        assert app.state.worker.model.pending == 0
        assert app.state.worker.metrics.counts.in_progress == 0


async def turn_until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_predictions_through_the_app_are_the_models_own(
    digits: Predictor, cancer: Predictor, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with app_of(digits, tmp_path) as (client, _):
            # More rows than are encoded on the loop.
            raw = np.tile(digits.golden.raw, (4, 1, 1, 1))[:600]
            body = {"instances": raw[:, 0].tolist()}
            found = probabilities_in(await client.post("/predict", json=body), digits)
            np.testing.assert_array_equal(found, digits.run(raw)[1])
            pictures = [("files", ("a.png", encode_png(row))) for row in raw[:3]]
            found = probabilities_in(await client.post("/predict/image", files=pictures), digits)
            np.testing.assert_array_equal(found, digits.run(raw[:3])[1])
        async with app_of(cancer, tmp_path) as (client, _):
            raw = cancer.golden.raw[:5]
            found = probabilities_in(
                await client.post("/predict", json={"instances": rows_of(cancer, raw)}), cancer
            )
            np.testing.assert_array_equal(found, cancer.run(raw)[1])
            refused = await client.post("/predict/image", content=b"")
            assert refused.status_code == 404 and "table rows" in refused.json()["error"]

    asyncio.run(scenario())


def test_pictures_are_decoded_beside_the_event_loop(
    digits: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def watched(*given: object, **options: object):
        threads.append(threading.current_thread().name)
        return decode_images(*given, **options)

    monkeypatch.setattr("serving.wire.decode_images", watched)
    monkeypatch.setattr("serving.endpoints.decode_images", watched)
    png = encode_png(np.zeros((1, 100, 100), np.uint8))

    async def scenario() -> None:
        async with app_of(digits, tmp_path) as (client, _):
            body = {"instances": [{"b64": base64.b64encode(png).decode()}]}
            for response in (
                await client.post("/predict", json=body),
                await client.post("/predict", content=json.dumps(body).replace("64", "\\u00364")),
                await client.post("/predict/image", content=png),
                await client.post("/predict/image", files=[("files", ("a.png", png))]),
            ):
                assert response.status_code == 200, response.text

    asyncio.run(scenario())
    assert len(threads) == 4 and all(name.startswith("decode") for name in threads)


def test_all_pictures_of_a_request_together_are_limited_on_every_route(
    digits: Predictor, tmp_path: Path
) -> None:
    png = encode_png(digits.golden.raw[0])
    b64 = {"b64": base64.b64encode(png).decode()}

    async def scenario() -> None:
        async with app_of(digits, tmp_path, max_pixels=100) as (client, _):
            for count, status in ((1, 200), (2, 400)):
                files = [("files", ("a.png", png))] * count
                body = {"instances": [b64] * count}
                for place, response in (
                    ("instances[1].b64", await client.post("/predict", json=body)),
                    ("files[1]", await client.post("/predict/image", files=files)),
                ):  # fmt: skip
                    assert response.status_code == status, response.text
                    if status == 400:
                        assert (
                            response.json()["error"]
                            == f"{place}: expected at most 100 pixels in all pictures together"
                        )

    asyncio.run(scenario())


def test_an_overloaded_service_answers_503_and_when_to_come_back(
    digits: Predictor, tmp_path: Path
) -> None:
    gate = Gate(digits)
    body = {"instances": digits.golden.raw[:1, 0].tolist()}

    async def scenario() -> None:
        slow = replace(digits, model=gate)
        async with app_of(slow, tmp_path, IN_THREAD_S, max_queue_rows=1) as (client, worker):
            first = asyncio.create_task(client.post("/predict", json=body))
            await turn_until(lambda: gate.rows == 1)
            waits = asyncio.create_task(client.post("/predict", json=body))
            await turn_until(lambda: worker.model.batcher.queued_rows == 1)
            refused = await client.post("/predict", json=body)
            gate.go.set()
            assert ((await first).status_code, (await waits).status_code) == (200, 200)
            assert refused.status_code == 503 and "overloaded" in refused.json()["error"]
            assert int(refused.headers["retry-after"]) >= 1
            assert worker.metrics.counts.shed == {"rows": 1}

    asyncio.run(scenario())


def test_a_caller_that_is_gone_is_forgotten_whenever_that_was(
    digits: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the very turn of the loop in which its answer comes."""
    gate = Gate(digits)
    body = {"instances": digits.golden.raw[:1, 0].tolist()}

    async def scenario() -> None:
        slow = replace(digits, model=gate)
        async with app_of(slow, tmp_path, IN_THREAD_S) as (client, worker):
            now, later = (asyncio.create_task(client.post("/predict", json=body)) for _ in "12")
            await turn_until(lambda: worker.model.pending == 2)
            await turn_until(lambda: gate.rows > 0)
            later.cancel()
            finish = worker.model.batcher._finish

            def finish_late(*outcome: object) -> None:
                now.cancel()
                finish(*outcome)  # type: ignore[arg-type]

            worker.model.batcher._finish = finish_late  # type: ignore[method-assign]
            gate.go.set()
            answers = await asyncio.gather(now, later, return_exceptions=True)
            assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
            worker.model.batcher._finish = finish  # type: ignore[method-assign]
            assert (await client.post("/predict", json=body)).status_code == 200

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_was_accepted_is_answered_by_the_model_that_was_asked(
    digits: Predictor, cancer: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model is taken up while one request runs and the picture of another is decoded."""
    gate, decoding, decode = Gate(digits), threading.Event(), threading.Event()

    def slow_decode(*given: object, **options: object):
        decoding.set()
        assert decode.wait(PATIENCE_S)
        return decode_images(*given, **options)

    monkeypatch.setattr("serving.endpoints.decode_images", slow_decode)
    body = {"instances": digits.golden.raw[:1, 0].tolist()}

    async def scenario() -> None:
        slow = replace(digits, model=gate)
        async with app_of(slow, tmp_path, IN_THREAD_S) as (client, worker):
            runs = asyncio.create_task(client.post("/predict", json=body))
            await turn_until(lambda: gate.rows == 1)
            # Large enough to be decoded in a thread.
            large = np.repeat(np.repeat(digits.golden.raw[1], 9, axis=1), 9, axis=2)
            decodes = asyncio.create_task(client.post("/predict/image", content=encode_png(large)))
            await turn_until(decoding.is_set)
            before = worker.model
            worker.take_up(Prepared(cancer, Pace([1], [ON_LOOP_S])))
            rows = {"instances": rows_of(cancer, cancer.golden.raw[:1])}
            answer = await client.post("/predict", json=rows)
            assert answer.json()["model"] == cancer.manifest.reference
            gone = await client.post("/v2/models/digits/infer", content=b"")
            assert gone.status_code == 404 and cancer.manifest.reference in gone.json()["error"]
            gate.go.set()
            decode.set()
            resized, _ = decode_images([encode_png(large)], digits.manifest.input)
            _, expected = digits.run(np.concatenate([digits.golden.raw[:1], resized]))
            for row, task in ((0, runs), (1, decodes)):
                found = probabilities_in(await task, digits)
                np.testing.assert_array_equal(found, expected[row : row + 1])
            await turn_until(lambda: not worker._retiring)
            assert before.pending == 0 and before.batcher._closing

    asyncio.run(scenario())


def test_documents_page_and_metrics_are_this_models(digits: Predictor, tmp_path: Path) -> None:
    reference = digits.manifest.reference

    async def scenario() -> None:
        async with app_of(digits, tmp_path) as (client, _):
            assert (await client.get("/model")).json()["backend"] == "onnx"
            assert "/predict/image" in (await client.get("/docs.json")).json()["paths"]
            assert reference in (await client.get("/")).text
            body = json.dumps({"instances": digits.golden.raw[:3, 0].tolist()})
            assert (await client.post("/predict", content=body)).status_code == 200
            families = text_string_to_metric_families((await client.get("/metrics")).text)
            found = {sample.name: sample for family in families for sample in family.samples}
            assert found["parityline_batch_rows_sum"].value == 3
            assert found["parityline_batch_rows_sum"].labels == {"model": reference}

    asyncio.run(scenario())


def test_only_so_many_requests_wait_to_be_decoded_and_errors_are_theirs() -> None:
    release = threading.Event()

    async def scenario() -> None:
        outcomes: list[object] = []
        decoding = DecodingThread(max_waiting=2)
        decoding.check_room()
        for function in (lambda: release.wait(PATIENCE_S), lambda: int("x")):
            decoding.check_room()
            decoding.submit(function, outcomes.append)
        with pytest.raises(Overloaded) as refused:
            decoding.check_room()
        assert refused.value.reason == "decoding"
        release.set()
        await turn_until(lambda: len(outcomes) == 2)
        decoding.check_room()
        decoding.close()
        assert outcomes[0] is True and isinstance(outcomes[1], ValueError)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
