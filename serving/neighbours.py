"""Connections shared out evenly: a new one goes to the worker that has the fewest.

All workers accept from one socket, and whichever wakes up first takes a burst of connections alone;
kept open they would leave the other cores idle. So a worker that has more than another hands what
it has just accepted on, before a byte of it is read. (Envoy calls this exact balance.)

PID.counts   two int64, mapped by all workers: connections open, connections taken from others
PID.socket   takes connections, one a datagram
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

_OPEN, _TAKEN = 0, 1
_BYTES = 16
# The count of a worker that takes no more.
_FULL = 2**62


class _Neighbour:
    """Another worker. given: what it was handed and has not taken yet."""

    def __init__(self, counts: Path) -> None:
        self.counts = _mapped(counts, "r")
        self.address = str(counts.with_suffix(".socket"))
        self._given = 0
        self._taken = int(self.counts[_TAKEN])

    def connections(self) -> int:
        """Those that it has, and will have soon."""
        taken = int(self.counts[_TAKEN])
        # What others have handed to it counts as taken too: then it gets one too many at most.
        self._given = max(0, self._given - (taken - self._taken))
        self._taken = taken
        return int(self.counts[_OPEN]) + self._given

    def given(self) -> None:
        """One more was handed to it."""
        self._given += 1


class Neighbours:
    """The other workers of a service, and this one as they see it. Used on the event loop."""

    def __init__(
        self, directory: Path, take: Callable[[socket.socket], None], *, pid: int | None = None
    ) -> None:
        """directory: of all workers. take: gets a connection that another worker has accepted, and
        calls `arrived` once that is among this one's, or is not to be.

        Raises OSError where the directory's path is too long for a socket, or cannot be written.
        """
        self._directory = directory
        self._take = take
        self._connections = 0
        self._has_left = False
        # Taken from others, and not among the connections yet.
        self._arriving = 0
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
            self._counts = _mapped(self._file, "r+")
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        self.look()

    def look(self) -> None:
        """See which workers there are; called every now and then."""
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

    def hand_over(self, file_descriptor: int, own: int) -> bool:
        """Whether another worker has it now, as that has fewer than the `own` of this one."""
        # What others have handed to this one in the meantime is its own as well.
        self._receive()
        own += self._arriving
        descriptors = array.array("i", [file_descriptor])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        while own and self._others:
            name, fewest = min(self._others.items(), key=lambda other: other[1].connections())
            if fewest.connections() >= own:
                break
            try:
                self._socket.sendmsg([b"c"], rights, 0, fewest.address)
            except (ConnectionRefusedError, FileNotFoundError):
                # It is gone, and left its files behind.
                del self._others[name]
                for file in (self._directory / name, Path(fewest.address)):
                    file.unlink(missing_ok=True)
                continue
            except OSError:
                # It does not keep up: the connection stays.
                break
            fewest.given()
            return True
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
        self._receive()
        self._socket.close()
        self._socket_file.unlink(missing_ok=True)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
                # They count as open before they no longer count as given.
                self._arriving += len(descriptors)
                self.tell(self._connections)
                self._counts[_TAKEN] += len(descriptors)
                for descriptor in descriptors:
                    self._take(socket.socket(fileno=descriptor))


def _mapped(file: Path, mode: str) -> np.ndarray:
    """The counts in a file, int64 [2], as all who map it see them."""
    access = mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_WRITE
    with file.open(f"{mode}b") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), _BYTES, access=access), dtype=np.int64)
