"""One request that wants a prediction, and what an answer is."""

from __future__ import annotations

import time
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException

from artifacts.errors import DataError
from serving.batcher import Ticket
from serving.overload import Overloaded

# In one piece, or where it was read to.
Body = bytes | bytearray | memoryview

_JSON = b"content-type: application/json\r\n"


class Reply(msgspec.Struct, frozen=True):
    """An answer. head: its headers as HTTP/1.1 has them, each line ended, without the length."""

    status: int
    body: bytes
    head: bytes = _JSON

    @property
    def headers(self) -> dict[str, str]:
        """The head as names and values."""
        lines = self.head.decode("latin-1").split("\r\n")
        return dict(line.split(": ", 1) for line in lines if line)


def error_reply(error: Exception) -> Reply:
    """`{"error": "..."}` with the status that suits the error; its message is for the caller.

    Of an error that is not the caller's nothing is told.
    """
    headers: dict[str, str] = {}
    message = str(error)
    if isinstance(error, DataError):
        status = HTTPStatus.BAD_REQUEST.value
    elif isinstance(error, Overloaded):
        status = HTTPStatus.SERVICE_UNAVAILABLE.value
        message = f"overloaded: {error}; try again"
        headers["retry-after"] = str(error.retry_after_s)
    elif isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        headers.update(error.headers or {})
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        message = "internal error; the server's log says more"
    lines = [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
    return Reply(status, msgspec.json.encode({"error": message}), _JSON + b"".join(lines))


class Exchange:
    """A request, until it is answered, once, or its caller is gone.

    path: as asked for. query: of the URL. headers: by lower-case name. body: as it came.
    files: of a form instead of a body, with the names by which errors call them.
    """

    __slots__ = (
        "answered",
        "arrived",
        "body",
        "files",
        "headers",
        "path",
        "query",
        "route",
        "ticket",
    )

    def __init__(self, path: str, query: str, headers: dict[bytes, bytes], body: bytes) -> None:
        self.path = path
        self.query = query
        # The endpoint's, once that is known.
        self.route = ""
        self.headers = headers
        self.body: Body = body
        self.files: list[tuple[str, bytes]] | None = None
        self.arrived = time.perf_counter()
        self.ticket: Ticket | None = None
        self.answered = False

    def send(self, reply: Reply) -> None:
        """Bring the reply to the caller; called once at most, on the loop."""
        raise NotImplementedError

    def reply(self, reply: Reply) -> None:
        """Answer it, unless that was done or nobody waits."""
        if not self.answered:
            self.answered = True
            self.send(reply)

    def refuse(self, reply: Reply) -> None:
        """Answer that there is no room for it."""
        self.reply(reply)

    def cancel(self) -> None:
        """Nobody waits any more: its rows leave the queue."""
        self.answered = True
        if self.ticket is not None:
            self.ticket.cancel()
