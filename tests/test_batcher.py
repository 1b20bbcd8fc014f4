"""Promise 5 inside one process: each caller gets its own answer, once, whatever the others do."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batcher import Answer, Cancelled, Ticket
from serving.overload import Overloaded
from tests.batching import (
    PATIENCE_S,
    Gate,
    Outcome,
    Seen,
    answer,
    batcher_of,
    double,
    rows,
    turn_until,
)

PLANS = st.lists(
    st.tuples(
        st.integers(1, 40),  # rows
        st.sampled_from(["ok", "ok", "bad", "cancel", "cancel later", "deliver fails"]),
        st.booleans(),  # let the loop turn before the next
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(plan=PLANS, largest=st.integers(1, 50), on_loop=st.booleans())
def test_each_request_is_delivered_once_with_its_own_rows_in_batches_that_fit(
    plan: list[tuple[int, str, bool]], largest: int, on_loop: bool
) -> None:
    """With errors, splits, cancellations and callers that fail, all at random."""
    sizes: list[int] = []
    delivered: list[list[Outcome]] = [[] for _ in plan]
    requests = [
        rows(size, -1.0 if fate == "bad" else 1.0 + index)
        for index, (size, fate, _) in enumerate(plan)
    ]

    def run(raw: np.ndarray) -> Answer:
        sizes.append(len(raw))
        return double(raw)

    async def scenario() -> None:
        batcher = batcher_of(run, on_loop=on_loop, batch_rows=largest)
        tickets: list[Ticket] = []
        for index, (_, fate, turn) in enumerate(plan):

            def deliver(outcome: Outcome, index: int = index, fate: str = fate) -> None:
                delivered[index].append(outcome)
                if fate == "deliver fails":
                    raise RuntimeError("the caller is gone")

            tickets.append(batcher.submit(requests[index], deliver))
            if fate == "cancel":
                tickets[-1].cancel()
            if turn:
                await asyncio.sleep(0)
        for ticket, (_, fate, _) in zip(tickets, plan, strict=True):
            if fate == "cancel later":
                ticket.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await batcher.close()
        assert (batcher.queued_rows, batcher._queued_bytes) == (0, 0)

    asyncio.run(scenario())
    assert all(size <= largest for size in sizes)
    for raw, outcomes, (_, fate, _) in zip(requests, delivered, plan, strict=True):
        (outcome,) = outcomes
        if fate == "bad":
            assert isinstance(outcome, RuntimeError)
        elif fate == "cancel":
            assert isinstance(outcome, Cancelled)
        elif fate == "cancel later" and isinstance(outcome, Cancelled):
            pass
        else:
            assert not isinstance(outcome, Exception)
            np.testing.assert_array_equal(outcome[0], raw * 2)
            np.testing.assert_array_equal(outcome[1], raw * 3)


def test_what_waits_while_the_model_runs_is_joined() -> None:
    gate, seen = Gate(), Seen()

    async def scenario() -> None:
        batcher = batcher_of(gate, observer=seen)
        async with asyncio.timeout(PATIENCE_S):
            first = asyncio.create_task(answer(batcher, rows(1)))
            await asyncio.to_thread(gate.inside.wait, PATIENCE_S)
            others = [asyncio.create_task(answer(batcher, rows(1))) for _ in range(5)]
            await turn_until(lambda: batcher.queued_rows == 5)
            gate.go.set()
            await asyncio.gather(first, *others)

    asyncio.run(scenario())
    assert (seen.rows, seen.waits) == ([1, 5], 6)


def test_pieces_of_a_large_request_take_turns_with_what_came_after_it() -> None:
    gate = Gate()
    order: list[str] = []

    async def scenario() -> None:
        batcher = batcher_of(gate, batch_rows=4)
        batcher.submit(rows(1, 9), lambda _: order.append("first"))
        await asyncio.to_thread(gate.inside.wait, PATIENCE_S)
        batcher.submit(rows(12, 1), lambda _: order.append("large"))
        batcher.submit(rows(4, 2), lambda _: order.append("small"))
        gate.go.set()
        await batcher.close()

    asyncio.run(scenario())
    assert gate.batches == [[9], [1] * 4, [2] * 4, [1] * 4, [1] * 4]
    assert order == ["first", "small", "large"]


def test_rows_of_a_caller_that_is_gone_are_not_run() -> None:
    gate = Gate()
    outcomes: list[Outcome] = []

    async def scenario() -> Answer:
        batcher = batcher_of(gate, batch_rows=4)
        split = batcher.submit(rows(6, 1), outcomes.append)
        await asyncio.to_thread(gate.inside.wait, PATIENCE_S)
        gone = asyncio.create_task(answer(batcher, rows(1, 2)))
        stays = asyncio.create_task(answer(batcher, rows(1, 3)))
        await turn_until(lambda: batcher.queued_rows == 4)
        gone.cancel()
        split.cancel()
        await asyncio.sleep(0)
        # Nor waited for: whoever comes now is behind one row.
        assert batcher.queued_rows == 1
        gate.go.set()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stayed = await stays
        assert batcher.queued_rows == 0
        return stayed

    assert (asyncio.run(scenario())[0] == 6).all()
    assert gate.batches == [[1] * 4, [3]]
    assert [type(outcome) for outcome in outcomes] == [Cancelled]


def test_a_batch_that_fails_is_run_one_by_one_off_the_loop() -> None:
    """Also one that cannot be joined."""
    threads: set[str] = set()

    def run(raw: np.ndarray) -> Answer:
        threads.add(threading.current_thread().name)
        return double(raw)

    async def scenario() -> list[Outcome]:
        batcher = batcher_of(run)
        other_width = np.ones((1, 3), dtype=np.float32)
        calls = (answer(batcher, raw) for raw in (rows(1), rows(1, -1), other_width))
        return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[return-value]

    good, bad, other = asyncio.run(scenario())
    assert isinstance(bad, RuntimeError)
    assert not isinstance(good, Exception) and (good[0] == 2).all()
    assert not isinstance(other, Exception) and other[0].shape == (1, 3)
    assert threads == {"model_0"}


@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_queue_rows": 8}, "rows"), ({"max_queue_bytes": 64}, "bytes")]
)
def test_a_full_queue_refuses_and_serves_what_it_accepted(
    limit: dict[str, float], reason: str
) -> None:
    gate = Gate()
    outcomes: list[Outcome] = []

    async def scenario() -> None:
        batcher = batcher_of(gate, batch_rows=100, **limit)
        # An empty queue takes any size.
        batcher.submit(rows(30), outcomes.append)
        await asyncio.to_thread(gate.inside.wait, PATIENCE_S)
        for _ in range(2):
            batcher.submit(rows(4), outcomes.append)
        with pytest.raises(Overloaded) as refused:
            batcher.submit(rows(1), outcomes.append)
        assert refused.value.reason == reason and refused.value.retry_after_s >= 1
        gate.go.set()
        await batcher.close()

    asyncio.run(scenario())
    assert [len(outcome[0]) for outcome in outcomes if isinstance(outcome, tuple)] == [30, 4, 4]


def test_a_lone_request_waits_for_others_and_a_full_batch_for_nobody() -> None:
    seen = Seen()

    async def scenario() -> None:
        batcher = batcher_of(double, observer=seen, batch_rows=4, max_delay_s=1000.0)
        calls = [asyncio.create_task(answer(batcher, rows(1))) for _ in range(3)]
        await turn_until(lambda: batcher.queued_rows == 3)
        await asyncio.sleep(0.02)
        assert seen.rows == []
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(answer(batcher, rows(1)), *calls)
            last = asyncio.create_task(answer(batcher, rows(1)))
            await turn_until(lambda: batcher.queued_rows == 1)
            # Nor does closing wait.
            await batcher.close()
            await last

    asyncio.run(scenario())
    assert seen.rows == [4, 1]


def test_closing_answers_all_and_takes_nothing_more() -> None:
    outcomes: list[Outcome] = []

    async def scenario() -> None:
        batcher = batcher_of(double, batch_rows=2)
        for _ in range(10):
            batcher.submit(rows(2), outcomes.append)
        async with asyncio.timeout(PATIENCE_S):
            await batcher.close()
        assert len(outcomes) == 10
        with pytest.raises(Overloaded, match="stopping"):
            batcher.submit(rows(1), outcomes.append)

    asyncio.run(scenario())
    assert all((outcome[0] == 2).all() for outcome in outcomes if isinstance(outcome, tuple))
