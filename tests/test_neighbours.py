"""Workers that hand each other connections, several in one process here."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serving.neighbours import Neighbours


class Worker:
    """Holds what it accepts and what it is given."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.held: list[socket.socket] = []
        self.neighbours = Neighbours(directory, self.take, pid=pid)
        # Instead of at once, what is taken waits here.
        self.waiting: list[socket.socket] | None = None

    def keep(self, connection: socket.socket) -> None:
        self.held.append(connection)
        self.neighbours.tell(len(self.held))

    def take(self, connection: socket.socket) -> None:
        if self.waiting is not None:
            self.waiting.append(connection)
            return
        self.keep(connection)
        self.neighbours.arrived()

    def accept(self) -> bool:
        """Whether it kept the connection."""
        ours, theirs = socket.socketpair()
        theirs.close()
        if self.neighbours.hand_over(ours.fileno()):
            ours.close()
            return False
        self.keep(ours)
        return True

    def close(self) -> None:
        self.neighbours.close()
        for connection in self.held:
            connection.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_who_accepts_them_all_ends_with_as_many_as_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        workers = [Worker(tmp_path, pid) for pid in (1, 2, 3)]
        for worker in workers:
            worker.neighbours.look()
        # Before any other worker has had a moment to take what it was given.
        for _ in range(30):
            workers[0].accept()
        assert len(workers[0].held) == 10
        while sum(len(worker.held) for worker in workers) < 30:
            await asyncio.sleep(0.001)
        assert [len(worker.held) for worker in workers] == [10, 10, 10]
        # They are the connections themselves.
        assert all(connection.recv(1) == b"" for worker in workers for connection in worker.held)
        # The fewest gets the next one.
        workers[2].held.pop().close()
        workers[2].neighbours.tell(9)
        assert not workers[1].accept()
        await asyncio.sleep(0.05)
        assert [len(worker.held) for worker in workers] == [10, 10, 10]
        for worker in workers:
            worker.close()
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]

    run(scenario)


def test_what_was_taken_counts_before_it_is_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, there = Worker(tmp_path, 1), Worker(tmp_path, 2)
        here.neighbours.look()
        there.neighbours.look()
        waiting = there.waiting = []
        for _ in range(5):
            for _ in range(8):
                here.accept()
            await asyncio.sleep(0.02)
        assert len(here.held) == len(waiting) == 20
        # Nor does the one that they come to take itself for idle.
        assert here.accept()
        there.waiting = None
        for connection in waiting:
            there.take(connection)
        assert not here.accept() and here.accept()
        for worker in (here, there):
            worker.close()

    run(scenario)


def test_a_burst_is_shared_out_however_few_messages_the_system_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, there = Worker(tmp_path, 1), Worker(tmp_path, 2)
        here.neighbours.look()
        kept = sum(here.accept() for _ in range(1000))
        assert kept == 500
        while len(there.held) < 500:
            await asyncio.sleep(0.001)
        for worker in (here, there):
            worker.close()

    run(scenario)


def test_what_a_killed_worker_promised_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, there = Worker(tmp_path, 1), Worker(tmp_path, 2)
        here.neighbours.look()
        for _ in range(8):
            here.accept()
        # As if it had been killed before it sent them.
        outgoing = here.neighbours._others["2.counts"].outgoing
        for descriptor in outgoing:
            os.close(descriptor)
        outgoing.clear()
        assert len(here.held) == 4
        there.neighbours.look()
        assert [here.accept() for _ in range(2)] == [True, False]
        await asyncio.sleep(0.02)
        there.neighbours.look()
        there.neighbours.look()
        assert len(there.held) == 1
        # Five here, one there.
        assert [here.accept() for _ in range(5)] == [False] * 4 + [True]
        for worker in (here, there):
            worker.close()

    run(scenario)


def test_a_worker_that_was_stopped_stops_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, there = Worker(tmp_path, 1), Worker(tmp_path, 2)
        here.neighbours.look()
        with there.neighbours._alone():
            kept = sum(here.accept() for _ in range(10))
        assert kept == 5
        for worker in (here, there):
            worker.close()

    run(scenario)


@pytest.mark.parametrize("end", ["leaves", "is killed", "takes nothing", "is looked for"])
def test_nothing_is_lost_on_a_worker_that_takes_no_more(tmp_path: Path, end: str) -> None:
    async def scenario() -> None:
        here, there = Worker(tmp_path, 1), Worker(tmp_path, 2)
        here.neighbours.look()
        if end == "leaves":
            there.neighbours.leave()
        elif end == "is killed":
            there.neighbours._socket.close()
        if end == "takes nothing":
            # Ten messages or so wait in a socket at most.
            for _ in range(500):
                here.accept()
                here.neighbours._send()
            assert len(there.held) == 0
        else:
            for _ in range(500):
                here.accept()
            if end == "is looked for":
                here.neighbours.look()
        while len(here.held) + len(there.held) < 500:
            await asyncio.sleep(0.001)
        if end == "takes nothing":
            # It got its part of what it had room for.
            assert 0 < len(there.held) < 250
        elif end == "is looked for":
            assert len(there.held) == 250
        else:
            assert len(here.held) == 500
        if end == "is killed":
            assert not (tmp_path / "2.counts").exists()
            there.neighbours._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            there.neighbours._socket.setblocking(False)
        for worker in (here, there):
            worker.close()

    run(scenario)


def test_one_worker_alone_keeps_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = Worker(tmp_path, 1)
        assert all(worker.accept() for _ in range(5))
        worker.close()

    run(scenario)


def test_a_directory_of_too_long_a_name_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match="too long"):
            Worker(tmp_path / ("x" * 120), 1)

    run(scenario)
