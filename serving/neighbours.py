"""Connections shared out evenly: a new one goes to the worker that has the fewest.

All workers accept from one socket, and whichever wakes up first takes a burst of connections alone;
kept open they would leave the other cores idle. So a worker that has more than another hands what
it has just accepted on, before a byte of it is read. (Envoy calls this exact balance.)

PID.counts   two int64, mapped by all workers: connections open, and those that it is about to get
PID.socket   takes connections, those of a burst in one datagram: Linux holds ten or so, and no more
lock         held while it is decided where one goes, so that all decide by the same counts
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

# Of a datagram; Linux takes 253.
_MOST_DESCRIPTORS = 250
_OPEN, _PROMISED = 0, 1
_BYTES = 16
# The count of a worker that takes no more.
_FULL = 2**62
# Whoever has the lock has it for microseconds, unless it is not given the processor meanwhile; a
# worker that was stopped while it had it stops no other for longer.
_PATIENCE_S = 0.1
_PAUSE_S = 0.0005


class _Neighbour:
    """Another worker, and the connections that it is about to be sent."""

    def __init__(self, counts: Path) -> None:
        self.counts = _mapped(counts)
        self.address = str(counts.with_suffix(".socket"))
        self.outgoing: list[int] = []

    def connections(self) -> int:
        """Those that it has, and will have soon."""
        return int(self.counts.sum())


class Neighbours:
    """The other workers of a service, and this one as they see it. Used on the event loop."""

    def __init__(
        self, directory: Path, take: Callable[[socket.socket], None], *, pid: int | None = None
    ) -> None:
        """directory: of all workers. take: gets a connection that another worker has accepted, or
        would not take, and calls `arrived` once that is among this one's, or is not to be.

        Raises OSError where the directory's path is too long for a socket, or cannot be written.
        """
        self._directory = directory
        self._take = take
        self._connections = 0
        self._has_left = False
        # Taken from others, and not among the connections yet.
        self._arriving = 0
        self._received = 0
        self._seen = (0, 0)
        self._is_to_send = False
        directory.mkdir(exist_ok=True)
        self._file = directory / f"{pid or os.getpid()}.counts"
        self._socket_file = self._file.with_suffix(".socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._others: dict[str, _Neighbour] = {}
        try:
            self._socket.bind(str(self._socket_file))
            temporary = self._file.with_suffix(".new")
            temporary.write_bytes(bytes(_BYTES))
            # Whoever sees the counts can reach the socket.
            temporary.replace(self._file)
            self._counts = _mapped(self._file)
            self._lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        self.look()

    def look(self) -> None:
        """See which workers there are; called every now and then."""
        self._send()
        self._receive()
        seen = (int(self._counts[_PROMISED]), self._received)
        if seen == self._seen:
            # Who promised them has been killed in the meantime.
            with self._alone():
                self._counts[_PROMISED] = 0
        self._seen = seen
        found = {file.name: file for file in self._directory.glob("*.counts")}
        found.pop(self._file.name, None)
        self._others = {name: it for name, it in self._others.items() if name in found}
        for name, file in found.items():
            if name not in self._others:
                with contextlib.suppress(OSError, ValueError):
                    self._others[name] = _Neighbour(file)

    def tell(self, connections: int) -> None:
        """So many are open here."""
        self._connections = connections
        if not self._has_left:
            self._counts[_OPEN] = connections + self._arriving

    def arrived(self) -> None:
        """One that was taken counts with the others now."""
        self._arriving -= 1
        self.tell(self._connections)

    def hand_over(self, file_descriptor: int) -> bool:
        """Whether another worker has it now, as that has fewer; otherwise it counts here."""
        with self._alone():
            own = self._connections + self._arriving + int(self._counts[_PROMISED])
            fewest = min(self._others.values(), key=_Neighbour.connections, default=None)
            if fewest is not None and fewest.connections() < own:
                # Where no file more may be open, it stays.
                with contextlib.suppress(OSError):
                    fewest.outgoing.append(os.dup(file_descriptor))
                    fewest.counts[_PROMISED] += 1
                    if not self._is_to_send:
                        # After all that have come with this one.
                        self._is_to_send = True
                        asyncio.get_running_loop().call_soon(self._send)
                    return True
            self.tell(self._connections + 1)
        return False

    def leave(self) -> None:
        """Take no more from others."""
        self._has_left = True
        self._counts[_OPEN] = _FULL
        self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """At the end."""
        self.leave()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._send()
        self._receive()
        self._socket.close()
        os.close(self._lock)
        self._socket_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(_PAUSE_S)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _send(self) -> None:
        self._is_to_send = False
        for name, other in list(self._others.items()):
            try:
                while other.outgoing:
                    batch = other.outgoing[:_MOST_DESCRIPTORS]
                    # send_fds of Python 3.11 knows no address.
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", batch))
                    self._socket.sendmsg([bytes(len(batch))], [rights], 0, other.address)
                    del other.outgoing[: len(batch)]
                    for descriptor in batch:
                        os.close(descriptor)
            except (ConnectionRefusedError, FileNotFoundError):
                # It is gone, and left its files behind.
                del self._others[name]
                for file in (self._directory / name, Path(other.address)):
                    file.unlink(missing_ok=True)
            except OSError:
                # It does not keep up.
                pass
            if other.outgoing:
                self._taken(other.outgoing, len(other.outgoing), other.counts)
                other.outgoing = []

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                # A byte for each, also for one that may not be open here, as too many files are.
                sent, descriptors, _, _ = socket.recv_fds(
                    self._socket, _MOST_DESCRIPTORS, _MOST_DESCRIPTORS
                )
                self._received += len(sent)
                self._taken(descriptors, len(sent), self._counts)

    def _taken(self, descriptors: list[int], promised: int, by: np.ndarray) -> None:
        with self._alone():
            self._arriving += len(descriptors)
            self.tell(self._connections)
            by[_PROMISED] = max(0, int(by[_PROMISED]) - promised)
        for descriptor in descriptors:
            self._take(socket.socket(fileno=descriptor))


def _mapped(file: Path) -> np.ndarray:
    """The counts in a file, int64 [2], as all who map it see and write them."""
    with file.open("r+b") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), _BYTES), dtype=np.int64)
