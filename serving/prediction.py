"""A request to a prediction route, on its connection: its body as it comes, its turn, its reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.exchange import Body, Exchange, Reply
from serving.overload import Overloaded

if TYPE_CHECKING:
    from serving.connection import Connection

# Smaller pieces of a body are put together as they come.
_SMALL_PIECE_BYTES = 1024
# There is room for so much of a body that was announced, and then for as much as has come.
_FIRST_ROOM_BYTES = 2**20
# A caller that was refused and asks again at once hears of it no sooner than this. It would
# otherwise take the processor from the model that it waits for, and have even more refused.
_REFUSALS_APART_S = 0.02


class Prediction(Exchange):
    """What the connection has of it, where uvicorn has a cycle for a request to the app.

    started: the requests before it on this connection are answered. complete: its body is in.
    refusal: what it is answered with, whatever its body is. overload: why it is refused once its
    body is in, of which nothing is kept. came, to_come, size: bytes of the body, those that have
    come, those that were announced and have not, those that are held.
    """

    __slots__ = (
        "began", "came", "chunks", "complete", "connection", "disconnected", "expects", "is_head",
        "keep_alive", "overload", "refusal", "size", "started", "to_come",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, path: str, query: str, headers: dict[bytes, bytes]
    ) -> None:
        super().__init__(path, query, headers, b"")
        self.connection = connection
        self.began = connection.loop.time()
        self.expects = connection.expect_100_continue
        self.is_head = connection.parser.get_method() == b"HEAD"
        self.keep_alive = (
            connection.parser.get_http_version() != "1.0" and connection.parser.should_keep_alive()
        )
        self.chunks: list[Body] = []
        self.came = 0
        self.to_come = 0
        if b"transfer-encoding" not in headers:
            # The parser has seen to it that this is a number.
            self.to_come = int(headers.get(b"content-length", b"0"))
        self.size = 0
        self.started = False
        self.complete = False
        self.refusal: Reply | None = None
        self.overload: Overloaded | None = None
        self.disconnected = False

    @property
    def response_complete(self) -> bool:
        """uvicorn's name for it."""
        return self.answered

    @property
    def is_wanted(self) -> bool:
        """Whether what comes of the body is of use."""
        return not self.answered and self.refusal is None and self.overload is None

    def keep(self, piece: bytes) -> None:
        """A piece of the body, as the parser has it."""
        chunks = self.chunks
        # Pieces of a few bytes, each an object of its own, would take many times what is counted.
        if not chunks or len(piece) >= _SMALL_PIECE_BYTES:
            chunks.append(piece)
        elif isinstance(chunks[-1], bytearray):
            chunks[-1] += piece
        else:
            chunks.append(bytearray(piece))

    def room(self, left: int) -> memoryview:
        """Memory for more of the body, of which so many bytes are to come."""
        first = b""
        if self.size < _FIRST_ROOM_BYTES:
            # In one piece with what there is, a body of usual size needs not be put together.
            first = b"".join(self.chunks)
            self.chunks.clear()
        size = len(first) + min(left, max(_FIRST_ROOM_BYTES, self.size))
        # Not written to before something comes, so that what is only announced takes no memory.
        chunk = np.empty(size, np.uint8).data
        chunk[: len(first)] = first
        self.chunks.append(chunk)
        return chunk[len(first) :]

    def close_body(self) -> None:
        """The body is in."""
        self.complete = True
        self.body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks = []

    def drop_body(self) -> int:
        """Let go of what is held; how many bytes that were."""
        size, self.size = self.size, 0
        self.chunks = []
        self.body = b""
        return size

    def send(self, reply: Reply) -> None:
        """See `Exchange`."""
        self.connection.respond(self, reply)

    def refuse(self, reply: Reply) -> None:
        """See `Exchange`."""
        connection = self.connection
        now = connection.loop.time()
        moment = max(now, connection.next_refusal)
        connection.next_refusal = moment + _REFUSALS_APART_S
        if moment > now:
            connection.loop.call_at(moment, self.reply, reply)
        else:
            self.reply(reply)
