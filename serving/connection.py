"""The server's side of an HTTP connection: limits for every request, a short way for predictions.

uvicorn (with httptools, on uvloop) speaks HTTP and runs BentoML's app. This subclass of its
protocol answers predictions without a task, a scope and layers of middleware for each, which cost
several times what a small model does; and it holds every connection to sizes and times. Requests
for anything else go on to the app.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from typing import Any, ClassVar

import httptools
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.admission import Admission
from serving.exchange import Reply
from serving.prediction import Prediction
from serving.reading import Reader

_MAX_HEAD_BYTES = 64 * 1024
# Requests that one connection may have waiting behind another.
_MAX_PIPELINED = 4000
# A body may take longer than its time while it comes at this rate.
_SLOWEST_BYTES_S = 16 * 1024
# What is still to come of a body that is read without the parser, and whose request is refused
# before it is there.
_LARGE_BYTES = 16 * 1024
# A client that is sending a body reads no answer before it has sent it: so much and so long is
# read and thrown away after a refusal, so that it sees the refusal and not a broken connection.
_LINGER_BYTES = 128 * 2**20
_LINGER_S = 5.0


class Connection(HttpToolsProtocol):
    """One connection. admission: of all of them; it is set before the process listens."""

    admission: ClassVar[Admission]
    _date: ClassVar[tuple[object, bytes]] = (None, b"")

    # Taken from another worker, so not to be handed on, and not among the connections yet.
    is_arriving = False
    # A Prediction, or uvicorn's own for a request to the app.
    cycle: Any

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Hand the connection to another worker, refuse it, or keep it."""
        super().connection_made(transport)
        self.worker = self.admission.worker
        self.settings = self.worker.settings
        self._deadline = self.loop.time() + self.settings.read_timeout_s
        self._head_bytes = 0
        self._in_body = False
        self._app_bytes = 0
        self._app_began = 0.0
        # Of the bodies of all its requests that went to the app, until they are all answered.
        self._app_held = 0
        self._lingered_bytes: int | None = None
        # Of a body that the parser need not see: what is to come.
        self.large_left = 0
        self.next_refusal = 0.0
        # Whose answer comes next; `cycle` is the request that was parsed last.
        self._turn: Any = None
        if not self.is_arriving and self.admission.hand_over(self):
            # The connection itself lives on, elsewhere.
            transport.abort()
            return
        transport.set_protocol(Reader(self))
        refusal = self.admission.admit(self)
        if refusal is not None:
            self._write(refusal, keep_alive=False)
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what was asked for on this connection."""
        self.admission.leave(self)
        for cycle in (self._turn, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(cycle, Prediction) and not cycle.answered:
                cycle.cancel()
                self._release(cycle)
        self.pipeline.clear()
        self._release_app()
        if self._turn is not self.cycle and self._turn and not isinstance(self._turn, Prediction):
            self._turn.disconnected = True
            self._turn.message_event.set()
        self._turn = None
        if isinstance(self.cycle, Prediction):
            self.cycle = None
        super().connection_lost(exc)

    def read(self, data: memoryview) -> None:
        """Parse, within limits."""
        if self._lingered_bytes is not None:
            self._linger_on(len(data))
            if self.transport.is_closing():
                return
        else:
            # Of a head, and of what comes after a body.
            self._head_bytes += len(data)
        pieces = [data]
        try:
            while pieces:
                piece = pieces.pop()
                try:
                    self.parser.feed_data(piece)
                except httptools.HttpParserUpgrade as upgrade:
                    head = self._stay()
                    pieces = [piece[upgrade.args[0] :], memoryview(head)] if head else []
        except httptools.HttpParserError:
            self.send_400_response("this is not HTTP, or damaged")
        if self._head_bytes > _MAX_HEAD_BYTES:
            message = f"the head: expected at most {_MAX_HEAD_BYTES} bytes, found more"
            self._end(431, message)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets JSON all the same."""
        self._end(400, msg)

    def _stay(self) -> bytes | None:
        """A request that offers another protocol is answered in this one, as it allows for.

        The parser takes all that follows for the other protocol, the body too; a new one is to
        read the head that this returns, then what follows. Java's client offers HTTP/2 so with
        each first request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self._end(405, "CONNECT: this is no proxy")
            return None
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = self._new_parser()
        return b"\r\n".join([*lines, b"", b""])

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn's own.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # The parser calls these, in this order, for each request.

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        if self._is_free():
            self._deadline = self.loop.time() + self.settings.read_timeout_s

    def on_headers_complete(self) -> None:
        """Choose the way: a refusal, a prediction, or the app."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = 0
        self._in_body = True
        if self._lingered_bytes is not None or self.transport.is_closing():
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self.transport.abort()
            return
        target, _, query = self.url.partition(b"?")
        path = target.decode("latin-1")
        if "%" in path:
            path = urllib.parse.unquote(path)
        headers = dict(self.headers)
        refusal = self.admission.refuse_head(path, headers)
        method = self.parser.get_method()
        if refusal is None and not self.admission.is_prediction(method, path, headers):
            refusal = self.admission.refuse_for_app(headers)
            if refusal is None:
                self._to_app()
                return
        cycle = Prediction(self, path, query.decode("latin-1"), headers)
        cycle.refusal = refusal
        free = self._is_free() and not self.flow.write_paused
        self.cycle = cycle
        if free:
            if refusal is None and cycle.to_come > _LARGE_BYTES and not cycle.expects:
                cycle.overload = self.worker.overload()
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """A piece of a body: counted, timed, kept."""
        self._head_bytes = 0
        cycle = self.cycle
        if isinstance(cycle, Prediction):
            if cycle.is_wanted:
                cycle.keep(body)
            self._took(cycle, len(body))
            self.large_left = cycle.to_come if cycle.to_come > _LARGE_BYTES else 0
        elif self._lingered_bytes is None and not self.transport.is_closing():
            self._app_bytes += len(body)
            self._extend(self._app_began, self._app_bytes)
            self._app_held += len(body)
            self.worker.held_bytes += len(body)
            refusal = self.admission.refuse_body(self._app_bytes) or self.admission.refuse_more()
            if refusal is not None:
                self._refuse_connection(refusal)
            else:
                super().on_body(body)

    def came(self, size: int) -> None:
        """So many bytes of a large body have come, past the parser."""
        self.large_left -= size
        if self._lingered_bytes is not None:
            self._linger_on(size)
        self._took(self.cycle, size)
        if not self.large_left and not self.transport.is_closing():
            # The one before would wait for this body.
            self.parser = self._new_parser()
            self.on_message_complete()

    def on_message_complete(self) -> None:
        """A request's last byte."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        self._head_bytes = 0
        if self._lingered_bytes is not None:
            self._close()
            return
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if not isinstance(cycle, Prediction):
            self._deadline = self.loop.time() + self.settings.request_timeout_s
            super().on_message_complete()
            if self._is_free():
                self._release_app()
            return
        cycle.close_body()
        if cycle.started and not cycle.answered:
            self._run(cycle)

    def on_response_complete(self) -> None:
        """The next request on this connection, if it is there already."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._deadline = self.loop.time() + self.settings.keep_alive_s
        if self._is_free() and not self._in_body:
            self._release_app()
        self._go_on()

    def pause_writing(self) -> None:
        """The client does not read its answers: it gets no more of them."""
        super().pause_writing()
        if self._lingered_bytes is None:
            self.flow.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._go_on()

    def _go_on(self) -> None:
        if self.flow.write_paused:
            return
        if self.pipeline:
            # Not from here: a thousand requests that are refused at once would be a thousand deep.
            self.loop.call_soon(self._start_next)
        else:
            self.flow.resume_reading()

    def _start_next(self) -> None:
        busy = self._turn is not None and not self._turn.response_complete
        if self.pipeline and not busy and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            # With many waiting, what more would come is left where it is.
            if not self.pipeline:
                self.flow.resume_reading()
            self._start_asgi_task(cycle, app)

    def respond(self, cycle: Prediction, reply: Reply) -> None:
        """Write a prediction's reply; where its body has not come yet, wait for that first."""
        self._release(cycle)
        if self.transport.is_closing():
            return
        if not cycle.complete:
            self._write(reply, keep_alive=False, with_body=not cycle.is_head)
            self._linger()
            return
        # While the process drains, callers are told to take their next request elsewhere.
        keep_alive = cycle.keep_alive and not self.worker.draining
        self._write(reply, keep_alive=keep_alive, with_body=not cycle.is_head)
        if not keep_alive:
            self._close()
        self.on_response_complete()

    def expire(self, now: float) -> None:
        """End what has taken too long; called every now and then. now: of the loop."""
        if now < min(self._deadline, self.worker.drain_until):
            return
        # Behind a request that waits for its answer the next one's body may be coming.
        waits = self._turn is not None and not self._turn.response_complete
        cycle = self._turn if waits else self.cycle
        in_body = self._in_body and cycle is self.cycle
        if self.transport.is_closing():
            # What was written is not read at the other end.
            self.transport.abort()
        elif self._lingered_bytes is not None:
            self._close()
        elif cycle is not None and not cycle.response_complete and not in_body:
            if isinstance(cycle, Prediction) or not cycle.response_started:
                seconds = self.settings.request_timeout_s
                self._end(504, f"no answer within {seconds:g} s")
            else:
                self.transport.abort()
        elif self._in_body or self._head_bytes:
            what = "body" if self._in_body else "head"
            message = f"the {what}: expected it sooner, it came too slowly"
            self._end(408, message)
        else:
            self._close()

    def _is_free(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _to_app(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        self._app_bytes = 0
        self._app_began = self.loop.time()
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Prediction):
            self._start(cycle)
        else:
            self._turn = cycle
            super()._start_asgi_task(cycle, app)

    def _start(self, cycle: Prediction) -> None:
        """It is this request's turn."""
        cycle.started = True
        self._turn = cycle
        if cycle.refusal is not None:
            cycle.reply(cycle.refusal)
        elif cycle.complete:
            self._run(cycle)
        else:
            cycle.began = self.loop.time()
            self._extend(cycle.began, cycle.came)
            if cycle.expects:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _run(self, cycle: Prediction) -> None:
        self._deadline = self.loop.time() + self.settings.request_timeout_s
        cycle.arrived = time.perf_counter()
        self.worker.begin(cycle.path, cycle, cycle.overload)

    def _took(self, cycle: Prediction, size: int) -> None:
        """So many bytes of its body have come: counted, timed, and held if they are kept."""
        cycle.came += size
        cycle.to_come -= size
        if self._lingered_bytes is not None or self.transport.is_closing():
            return
        if cycle.started and cycle.to_come:
            self._extend(cycle.began, cycle.came)
        if cycle.is_wanted:
            cycle.size += size
            self.worker.held_bytes += size
            refusal = self.admission.refuse_body(cycle.size) or self.admission.refuse_more()
            if refusal is not None:
                self._refuse(cycle, refusal)

    def _extend(self, began: float, size: int) -> None:
        allowed_s = self.settings.read_timeout_s + size / _SLOWEST_BYTES_S
        self._deadline = began + allowed_s

    def _refuse(self, cycle: Prediction, refusal: Reply) -> None:
        """Answer this request so, at its turn."""
        self._release(cycle)
        cycle.refusal = refusal
        if cycle.started:
            cycle.reply(refusal)

    def _refuse_connection(self, refusal: Reply) -> None:
        """Answer so if no other answer is under way, and end the connection."""
        if self.transport.is_closing() or self._lingered_bytes is not None:
            return
        cycle = self._turn
        if cycle is not None and cycle.response_complete and self._in_body and cycle is self.cycle:
            # The app has answered this request before its body was in.
            pass
        elif cycle is None or cycle.response_complete or isinstance(cycle, Prediction):
            if isinstance(cycle, Prediction):
                cycle.cancel()
                self._release(cycle)
            self._write(refusal, keep_alive=False)
        else:
            if not cycle.response_started:
                self._write(refusal, keep_alive=False)
            cycle.disconnected = True
            cycle.message_event.set()
        if self._in_body:
            self._linger()
        else:
            self._close()

    def _end(self, status: int, message: str) -> None:
        """Refuse the connection for what is wrong with it."""
        if not self.transport.is_closing() and self._lingered_bytes is None:
            self._refuse_connection(self.admission.tell(HTTPException(status, message)))

    def _release(self, cycle: Prediction) -> None:
        """Its body is held no more."""
        self.worker.held_bytes -= cycle.drop_body()
        # An idle connection keeps its last cycle.
        cycle.ticket = None

    def _release_app(self) -> None:
        self.worker.held_bytes -= self._app_held
        self._app_held = 0

    def _linger(self) -> None:
        # Nothing more is answered, so nothing more is kept.
        for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(cycle, Prediction):
                cycle.cancel()
                self._release(cycle)
        self.pipeline.clear()
        self._lingered_bytes = 0
        self._deadline = self.loop.time() + _LINGER_S
        self.flow.resume_reading()

    def _linger_on(self, size: int) -> None:
        assert self._lingered_bytes is not None
        self._lingered_bytes += size
        if self._lingered_bytes > _LINGER_BYTES:
            self.transport.abort()

    def _close(self) -> None:
        self._deadline = self.loop.time() + _LINGER_S
        self.transport.close()

    def _write(self, reply: Reply, *, keep_alive: bool, with_body: bool = True) -> None:
        defaults = self.server_state.default_headers
        if self._date[0] is not defaults:
            lines = [b"%s: %s\r\n" % header for header in defaults]
            Connection._date = (defaults, b"".join(lines))
        end = b"" if keep_alive else b"connection: close\r\n"
        end += b"content-length: %d\r\n\r\n" % len(reply.body)
        body = reply.body if with_body else b""
        self.transport.write(
            b"".join((STATUS_LINE[reply.status], self._date[1], reply.head, end, body))
        )
