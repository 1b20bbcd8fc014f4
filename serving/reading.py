"""How bytes come from a socket: heads into one place for all, large bodies each into its own.

A body of a few hundred kilobytes would otherwise be copied four times: out of the socket, to bytes,
through the parser to other bytes, and put together from these. A body that nobody wants, as there
is no room for its request, is not even copied once: a machine that is asked for four times what it
can do would spend as much on what it refuses as on what it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.connection import Connection

# A head, with it a small body, or the beginning of a large one.
_HEAD_BYTES = 16 * 1024
_UNWANTED_BYTES = 256 * 1024

# For all connections of a process, which has one loop: what is read is used, or counted, before
# anything else is.
_head = memoryview(bytearray(_HEAD_BYTES))
_unwanted = memoryview(bytearray(_UNWANTED_BYTES))
_nowhere = memoryview(b"")
# Linux drops what a TCP socket holds, where others read it.
_DROP = int(socket.MSG_TRUNC) | int(socket.MSG_DONTWAIT)


class Reader(asyncio.BufferedProtocol):
    """Between a transport and its connection, which gets heads, and is told of bodies."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Of a large body under way: where more of it goes.
        self._place = _nowhere
        # The transport's, once it is needed; not this one's to close.
        self._socket: socket.socket | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        connection = self._connection
        left = connection.large_left
        if not left:
            return _head
        if not connection.cycle.is_wanted:
            self._place = _nowhere
            return _head[:left]
        if not self._place:
            self._place = connection.cycle.room(left)
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """They have come."""
        connection = self._connection
        if not connection.large_left:
            connection.read(_head[:nbytes])
        else:
            self._place = self._place[nbytes:]
            connection.came(nbytes)
        if not connection.large_left:
            # An idle connection holds on to no body, nor gives the next its place.
            self._place = _nowhere
        elif not connection.cycle.is_wanted:
            self._place = _nowhere
            self._drop(connection.large_left)

    def _drop(self, left: int) -> None:
        """What is there already of a body that nobody wants, at most `left` bytes."""
        transport = self._connection.transport
        if transport.is_closing() or self._connection.scheme == "https":
            return
        if self._socket is None:
            its = transport.get_extra_info("socket")
            self._socket = socket.socket(its.family, its.type, its.proto, its.fileno())
        size = 0
        # What is wrong with the socket the transport will see.
        with contextlib.suppress(OSError):
            size = self._socket.recv_into(_unwanted, min(left, _UNWANTED_BYTES), _DROP)
        if size:
            self._connection.came(size)

    def eof_received(self) -> None:
        """See `asyncio.BufferedProtocol`; as all below."""
        self._connection.eof_received()

    def pause_writing(self) -> None:
        """The connection's own."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The connection's own."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection's own."""
        self._place = _nowhere
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        self._connection.connection_lost(exc)
