"""Promise 5 inside one process: each caller gets its own answer, whatever the others do."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batcher import Batcher, Overloaded


def double(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return raw * 2, raw * 3


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40), largest=st.integers(1, 50))
def test_every_request_gets_its_own_rows_back_in_batches_that_fit(
    sizes: list[int], largest: int
) -> None:
    batches: list[int] = []

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches.append(len(raw))
        return double(raw)

    async def scenario() -> list[tuple[np.ndarray, np.ndarray]]:
        async with Batcher(run, max_batch_rows=largest, max_queue_rows=10_000).running() as batcher:
            return await asyncio.gather(*(batcher.submit(raw) for raw in requests))

    requests = [np.full((size, 2), index, dtype=np.float32) for index, size in enumerate(sizes)]
    for raw, (logits, probabilities) in zip(requests, asyncio.run(scenario()), strict=True):
        np.testing.assert_array_equal(logits, raw * 2)
        np.testing.assert_array_equal(probabilities, raw * 3)
    assert sum(batches) == sum(sizes)
    assert all(rows <= largest or rows in sizes for rows in batches)


def test_what_waits_while_the_model_runs_is_joined() -> None:
    batches: list[int] = []
    release = threading.Event()

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches.append(len(raw))
        assert release.wait(10)
        return double(raw)

    async def scenario() -> None:
        async with Batcher(run, max_batch_rows=100, max_queue_rows=1000).running() as batcher:
            first = asyncio.create_task(batcher.submit(np.ones((1, 1))))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(batcher.submit(np.ones((1, 1)))) for _ in range(5)]
            await asyncio.sleep(0.05)
            release.set()
            await asyncio.gather(first, *others)

    asyncio.run(scenario())
    assert batches == [1, 5]


def test_a_request_that_makes_the_model_fail_fails_alone() -> None:
    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (raw < 0).any():
            raise RuntimeError("bad row")
        return double(raw)

    async def scenario() -> list[object]:
        async with Batcher(run, max_batch_rows=100, max_queue_rows=1000).running() as batcher:
            values = [1, 2, -1, 3]
            calls = (batcher.submit(np.full((1, 1), value)) for value in values)
            return await asyncio.gather(*calls, return_exceptions=True)

    one, two, bad, three = asyncio.run(scenario())
    assert isinstance(bad, RuntimeError)
    for value, answer in ((1, one), (2, two), (3, three)):
        assert answer[0].item() == 2 * value


def test_a_full_queue_refuses_and_serves_what_it_accepted() -> None:
    release = threading.Event()

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert release.wait(10)
        return double(raw)

    async def scenario() -> list[object]:
        async with Batcher(run, max_batch_rows=4, max_queue_rows=8).running() as batcher:
            running = asyncio.create_task(batcher.submit(np.ones((1, 1))))
            await asyncio.sleep(0.05)
            calls = [asyncio.create_task(batcher.submit(np.ones((4, 1)))) for _ in range(3)]
            await asyncio.sleep(0.05)
            release.set()
            return await asyncio.gather(running, *calls, return_exceptions=True)

    answers = asyncio.run(scenario())
    assert [isinstance(answer, Overloaded) for answer in answers] == [False, False, False, True]


def test_a_caller_that_went_away_costs_the_others_nothing() -> None:
    seen: list[int] = []
    release = threading.Event()

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.extend(raw[:, 0].tolist())
        assert release.wait(10)
        return double(raw)

    async def scenario() -> object:
        async with Batcher(run, max_batch_rows=100, max_queue_rows=1000).running() as batcher:
            first = asyncio.create_task(batcher.submit(np.full((1, 1), 1)))
            await asyncio.sleep(0.05)
            gone = asyncio.create_task(batcher.submit(np.full((1, 1), 2)))
            stays = asyncio.create_task(batcher.submit(np.full((1, 1), 3)))
            await asyncio.sleep(0.05)
            gone.cancel()
            release.set()
            await first
            with pytest.raises(asyncio.CancelledError):
                await gone
            return await stays

    logits, _ = asyncio.run(scenario())
    assert logits.item() == 6
    assert seen == [1, 3]


def test_leaving_answers_what_still_waits() -> None:
    async def scenario() -> list[asyncio.Task]:
        async with Batcher(double, max_batch_rows=2, max_queue_rows=100).running() as batcher:
            tasks = [asyncio.create_task(batcher.submit(np.ones((2, 1)))) for _ in range(10)]
            await asyncio.sleep(0)
        return tasks

    async def outer() -> None:
        tasks = await scenario()
        for logits, _ in await asyncio.wait_for(asyncio.gather(*tasks), 5):
            assert (logits == 2).all()

    asyncio.run(outer())
