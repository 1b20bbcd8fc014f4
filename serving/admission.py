"""Who may come in, and with how much: what a request is refused for before it reaches a route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from serving.exchange import Reply, error_reply
from serving.neighbours import Neighbours
from serving.overload import Overloaded
from serving.page.routes import is_open, sign_in
from serving.tokens import Tokens
from serving.worker import Worker

if TYPE_CHECKING:
    from serving.connection import Connection

# Whoever watches over a service has no token.
_OPEN = {"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"}


def _is_readable(value: bytes) -> bool:
    """As OpenTelemetry reads a header: UTF-8, otherwise Latin-1 with escapes."""
    for encoding in ("utf-8", "unicode_escape"):
        try:
            value.decode(encoding)
            return True
        except UnicodeDecodeError:
            pass
    return False


class Admission:
    """What all connections of a process share. connections: those that are open."""

    def __init__(
        self, worker: Worker, tokens: Tokens | None = None, *, short_way: bool = True
    ) -> None:
        """short_way: without it predictions go through the app like all else, where BentoML traces
        them."""
        self.worker = worker
        self.tokens = tokens
        self.connections: set[Connection] = set()
        self.neighbours: Neighbours | None = None
        self._short_way = short_way

    def hand_over(self, connection: Connection) -> bool:
        """Whether another worker has this new connection now, as it has fewer."""
        if self.neighbours is None:
            return False
        descriptor = connection.transport.get_extra_info("socket").fileno()
        return self.neighbours.hand_over(descriptor)

    def admit(self, connection: Connection) -> Reply | None:
        """Count it among the open ones; the refusal where there are too many."""
        self.connections.add(connection)
        if connection.is_arriving and self.neighbours is not None:
            connection.is_arriving = False
            self.neighbours.arrived()
        self._count_connections()
        most = self.worker.settings.max_connections
        if len(self.connections) <= most:
            return None
        return self.shed("connections", f"{most} connections are open")

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self._count_connections()

    def _count_connections(self) -> None:
        self.worker.metrics.counts.connections = len(self.connections)
        if self.neighbours is not None and not self.worker.draining:
            self.neighbours.tell(len(self.connections))

    def is_prediction(self, method: bytes, path: str, headers: dict[bytes, bytes]) -> bool:
        """Whether a request goes the short way, to the worker, and not to the app."""
        return (
            self._short_way
            and method == b"POST"
            and self.worker.takes(path)
            and not headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        )

    def refuse_head(self, path: str, headers: dict[bytes, bytes]) -> Reply | None:
        """What the head alone is refused for."""
        if self.tokens is not None and path not in _OPEN and not is_open(path):
            given = headers.get(b"authorization", b"")
            if not self.tokens.accept(given):
                # Somebody with a browser, which sends no token of its own accord.
                browses = not given and b"text/html" in headers.get(b"accept", b"")
                if browses and (form := sign_in(path)):
                    return self._count(form)
                expected = "Authorization: Bearer and a token of this service"
                found = "another" if given else "none"
                challenge = {"WWW-Authenticate": "Bearer"}
                message = f"expected {expected}, found {found}"
                return self.tell(HTTPException(401, message, challenge))
        # The parser has seen to it that this is a number.
        declared = int(headers.get(b"content-length", b"0"))
        return self._too_large(f"{declared}") if declared > self._most_bytes else None

    def refuse_for_app(self, headers: dict[bytes, bytes]) -> Reply | None:
        """What BentoML's middleware would fail at."""
        if all(map(_is_readable, headers.values())):
            return None
        return self.tell(HTTPException(400, "the head: expected headers in UTF-8"))

    def refuse_body(self, size: int) -> Reply | None:
        """What a body is refused for of which so many bytes have come."""
        return self._too_large("more") if size > self._most_bytes else None

    def refuse_more(self) -> Reply | None:
        """What a body is refused for because of all that are held."""
        held = self.worker.held_bytes
        if held <= self.worker.settings.max_queue_bytes:
            return None
        return self.shed("bytes", f"requests of {held} bytes are held")

    def shed(self, reason: str, message: str) -> Reply:
        """What a caller is told for whom there is no room; counted."""
        self.worker.metrics.shed(reason)
        return self.tell(Overloaded(reason, message, 1.0))

    def tell(self, error: Exception) -> Reply:
        """What a caller is told who is refused before any route has the request; counted."""
        return self._count(error_reply(error))

    def _count(self, reply: Reply) -> Reply:
        self.worker.metrics.request("refused", reply.status, 0.0)
        return reply

    @property
    def _most_bytes(self) -> int:
        return self.worker.settings.max_body_bytes

    def _too_large(self, found: str) -> Reply:
        message = f"the body: expected at most {self._most_bytes} bytes, found {found}"
        return self.tell(HTTPException(413, message))
