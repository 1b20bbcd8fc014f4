"""A limit on request bodies, counted as they arrive."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client that is sending a body reads no answer before it has sent it: this much beyond the
# limit is read and thrown away, so that it sees the 413 and not a broken connection.
_DISCARDED_FACTOR = 4


class LimitBody:
    """ASGI middleware: a body over the model's limit is answered 413, an encoded one 415."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The settings are known when the app starts, not when this is made.
        max_bytes: int = scope["app"].state.model.settings.max_body_bytes
        headers = Request(scope).headers
        encoding = headers.get("content-encoding", "").strip().lower() or "identity"
        declared = headers.get("content-length", "")
        received = 0

        async def counted() -> Message:
            nonlocal received
            if encoding != "identity":
                raise HTTPException(415, f"content-encoding {encoding!r} is not supported")
            if declared.isdigit() and int(declared) > max_bytes:
                await _discard(receive, max_bytes * _DISCARDED_FACTOR)
                raise _too_large(max_bytes, f"{declared} bytes")
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                await _discard(receive, max_bytes * _DISCARDED_FACTOR)
                raise _too_large(max_bytes, "more")
            return message

        await self.app(scope, counted, send)


async def _discard(receive: Receive, most: int) -> None:
    discarded = 0
    while discarded <= most:
        message = await receive()
        discarded += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _too_large(max_bytes: int, found: str) -> HTTPException:
    return HTTPException(413, f"the body: expected at most {max_bytes} bytes, found {found}")
