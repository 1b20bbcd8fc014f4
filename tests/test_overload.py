"""Who is refused, as an answer would wait too long: by what rows have taken of late."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from serving.batcher import Answer, Batcher
from tests.batching import PATIENCE_S, Clock, Gate, Outcome, batcher_of, double, rows, turn_until


def test_who_would_wait_too_long_by_the_pace_is_refused() -> None:
    gate = Gate()

    async def scenario() -> None:
        # 10 s for a row.
        batcher = batcher_of(gate, batch_rows=1, batch_s=10, max_wait_s=25)
        assert batcher.overload() is None
        batcher.submit(rows(1), lambda _: None)
        await asyncio.to_thread(gate.inside.wait, PATIENCE_S)
        batcher.submit(rows(1), lambda _: None)
        assert batcher.overload() is None
        batcher.submit(rows(1), lambda _: None)
        refused = batcher.overload()
        assert refused is not None and refused.reason == "wait"
        assert 25 < refused.retry_after_s <= 30
        gate.go.set()
        await batcher.close()

    asyncio.run(scenario())


def test_what_the_loop_does_between_batches_is_part_of_the_wait() -> None:
    """Twenty rows of a millisecond each, of which the loop has time for one in twenty."""

    async def scenario() -> None:
        batcher = batcher_of(lambda raw: (time.sleep(0.001), double(raw))[1], on_loop=True,
                             batch_rows=1, max_wait_s=0.1)  # fmt: skip
        answered: list[Outcome] = []

        def deliver(outcome: Outcome) -> None:
            answered.append(outcome)
            time.sleep(0.02)

        for _ in range(20):
            batcher.submit(rows(1), deliver)
        assert batcher.overload() is None
        await turn_until(lambda: len(answered) == 20)
        for _ in range(20):
            batcher.submit(rows(1), deliver)
        refused = batcher.overload()
        assert refused is not None and refused.reason == "wait"
        await batcher.close()

    asyncio.run(scenario())


def in_turns(batcher: Batcher, clock: Clock, reading_s: float, requests: int) -> list[int]:
    """How many of these requests are answered between one reading and the next."""
    answered: list[int] = []

    async def use() -> None:
        for _ in range(requests):
            batcher.submit(rows(100), lambda _: answered.append(len(turns)))
        turns: list[None] = []
        while len(answered) < requests:
            clock.now += reading_s
            turns.append(None)
            await asyncio.sleep(0)
        await batcher.close()

    asyncio.run(use())
    return [answered.count(turn) for turn in sorted(set(answered))]


@pytest.mark.parametrize(("reading_s", "each"), [(0.0, 3), (0.001, 3), (0.0105, 11), (9.0, 26)])
def test_the_model_gets_as_long_as_reading_took_and_never_half_of_the_longest_wait(
    monkeypatch: pytest.MonkeyPatch, reading_s: float, each: int
) -> None:
    clock = Clock(monkeypatch)
    limits = {"max_wait_s": 0.05, "max_queue_rows": 10**6}
    batcher = batcher_of(clock.model(0.001), on_loop_s=0.0025, batch_s=1e-5, **limits)
    found = in_turns(batcher, clock, reading_s, 200)
    assert found[:-1] == [each] * (len(found) - 1)


def test_what_a_request_waited_to_be_read_is_part_of_its_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    batcher = batcher_of(clock.model(0.004), on_loop_s=0.003, max_wait_s=0.0061, batch_s=1e-5)

    async def use() -> None:
        for _ in range(5):
            batcher.submit(rows(100), lambda _: None)
        assert batcher.overload() is None
        await asyncio.sleep(0)
        # One batch has run for 4 ms, and four of a millisecond each wait: 8 ms for who is read now.
        refused = batcher.overload()
        assert refused is not None and refused.reason == "wait"
        clock.now += 100
        await batcher.close()
        # All that came meanwhile has been read.
        assert batcher.overload() is None

    asyncio.run(use())


class Loaded:
    """A batcher whose batches take 2 ms, twice as long as was measured; about as long again the
    loop reads what comes meanwhile, 3.7 ms in all. At most 1 s is waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock(monkeypatch)
        self.model_s, self.reading_s = 0.002, 0.01

        def run(raw: np.ndarray) -> Answer:
            self.clock.now += self.model_s
            return double(raw)

        self.batcher = batcher_of(
            run, on_loop_s=0.003, batch_s=1e-5, max_wait_s=1.0,
            max_queue_rows=10**6,
        )  # fmt: skip

    def queue(self, batches: int) -> None:
        for _ in range(batches):
            self.batcher.submit(rows(100), lambda _: None)

    async def drain(self) -> None:
        while self.batcher.queued_rows:
            self.clock.now += self.reading_s
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def most_accepted(self) -> int:
        """So many batches are queued until the next is refused."""
        for batches in range(10_000):
            if self.batcher.overload() is not None:
                return batches
            self.queue(1)
        raise AssertionError("none is refused")


def test_how_fast_rows_were_answered_under_load_decides_how_many_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch)

    async def use() -> None:
        # By the pace that was measured a batch takes a millisecond.
        assert 990 <= loaded.most_accepted() <= 1010
        await loaded.drain()
        for _ in range(10):
            loaded.queue(250)
            await loaded.drain()
        began = loaded.clock.now
        found = loaded.most_accepted()
        await loaded.drain()
        assert 0.9 < loaded.clock.now - began < 1.15 and 250 <= found <= 300
        await loaded.batcher.close()

    asyncio.run(use())


def test_a_load_that_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(monkeypatch)

    async def use() -> None:
        for _ in range(10):
            loaded.queue(250)
            await loaded.drain()
        loaded.clock.now += 100
        # The model's own pace is not.
        assert 490 <= loaded.most_accepted() <= 510
        await loaded.drain()
        await loaded.batcher.close()

    asyncio.run(use())


def test_what_one_request_takes_says_nothing_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing waits, most of a turn is the loop's own work, not the rows'."""
    loaded = Loaded(monkeypatch)

    async def use() -> None:
        for _ in range(2000):
            loaded.queue(1)
            await loaded.drain()
        # But that the model itself takes twice as long does.
        assert 490 <= loaded.most_accepted() <= 510
        await loaded.drain()
        await loaded.batcher.close()

    asyncio.run(use())


def test_a_machine_that_is_faster_again_takes_more_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(monkeypatch)

    async def use() -> None:
        for _ in range(10):
            loaded.queue(250)
            await loaded.drain()
        loaded.model_s, loaded.reading_s = 0.001, 0.0
        for _ in range(50):
            loaded.queue(250)
            await loaded.drain()
        # Three times as many, though the load has not ended.
        assert loaded.most_accepted() > 800
        await loaded.drain()
        await loaded.batcher.close()

    asyncio.run(use())


def test_a_halt_is_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was stopped for a minute, say."""
    loaded = Loaded(monkeypatch)
    loaded.model_s, loaded.reading_s = 0.001, 0.0

    async def use() -> None:
        loaded.queue(300)
        await asyncio.sleep(0)
        loaded.clock.now += 60
        await loaded.drain()
        # 3 s of load, where at most 1 s is waited.
        for _ in range(10):
            loaded.queue(300)
            await loaded.drain()
        assert loaded.most_accepted() > 250
        await loaded.drain()
        await loaded.batcher.close()

    asyncio.run(use())


def test_to_wait_for_others_is_not_slow() -> None:
    """A model in its own thread, and requests that come while it runs wait for more."""

    async def use() -> None:
        batcher = batcher_of(
            lambda raw: (time.sleep(2e-5 * len(raw)), double(raw))[1],
            batch_s=2e-5, max_delay_s=0.1, max_wait_s=0.15,
        )  # fmt: skip
        answered: list[Outcome] = []
        for turn in range(1, 6):
            batcher.submit(rows(50), answered.append)
            await turn_until(lambda: batcher.queued_rows == 0)
            batcher.submit(rows(50), answered.append)
            await turn_until(lambda expected=2 * turn: len(answered) == expected)
        # 40 ms of work.
        for _ in range(20):
            batcher.submit(rows(100), lambda _: None)
        assert batcher.overload() is None
        await batcher.close()

    asyncio.run(use())
