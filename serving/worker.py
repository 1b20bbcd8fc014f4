"""One process that answers: the model it serves, and the way of a request through it.

A request is decoded, waits for the model with others, and is encoded; what takes long is done in a
thread meanwhile. Everything else here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

import numpy as np
from starlette.exceptions import HTTPException

from artifacts.errors import DataError
from serving.batcher import Answer
from serving.decoding import DecodingThread
from serving.endpoints import Endpoint, Memory
from serving.exchange import Exchange, Reply, error_reply
from serving.metrics import Counts, Metrics
from serving.overload import Overloaded
from serving.served import Prepared, ServedModel, serve_model
from serving.settings import Settings

_log = logging.getLogger("bentoml.parityline")

# Writing an answer with more numbers takes longer than handing it to a thread.
_LARGE_ANSWER = 5120
_MAX_DECODING = 64
_RETIRED_CHECK_S = 0.05


class Worker:
    """draining: SIGTERM has come, and readiness says no.

    held_bytes: of request bodies, from their arrival until they are answered.
    """

    def __init__(self, prepared: Prepared, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.model: ServedModel = serve_model(prepared, settings, metrics)
        self.draining = False
        # On the loop's clock: what has not come by then is not waited for.
        self.drain_until = math.inf
        self.held_bytes = 0
        self._decoding = DecodingThread(max_waiting=_MAX_DECODING)
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether this process should be given requests."""
        return not self.draining

    def takes(self, path: str) -> bool:
        """Whether a POST to this path is for `begin`."""
        return path in self.model.endpoints

    def take_up(self, prepared: Prepared) -> None:
        """From now on serve this; what was accepted before is answered by the model before."""
        before, self.model = self.model, serve_model(prepared, self.settings, self.metrics)
        task = asyncio.create_task(_retire(before))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Answer what was accepted, and end the threads."""
        await asyncio.gather(_retire(self.model), *self._retiring)
        self._decoding.close()

    def counts(self) -> Counts:
        """What this worker has counted, with the present state of its queue."""
        counts = self.metrics.counts
        counts.queued_rows = self.model.batcher.queued_rows
        return counts

    def overload(self) -> Overloaded | None:
        """Why a request that came now would be refused, if it would."""
        return self.model.batcher.overload(self._decoding.waiting, self._decoding.expected_s)

    def begin(self, path: str, exchange: Exchange, overload: Overloaded | None = None) -> None:
        """Answer a request; the reply is sent before this returns, or later.

        overload: why it is refused, where that was found out before its body had come.
        """
        model = self.model
        endpoint = model.endpoints.get(path)
        if endpoint is None:
            message = f"{path}: not served any more; {model.reference} is"
            exchange.reply(error_reply(HTTPException(404, message)))
            return
        exchange.route = endpoint.route
        model.pending += 1
        self.metrics.counts.in_progress += 1
        # Before the work of decoding what would be refused. Each request that is decoded now has a
        # row at least.
        overload = overload or self.overload()
        if overload is not None:
            self._end(model, exchange, overload)
            return
        try:
            if endpoint.takes_long(exchange):
                self._decoding.check_room()
                self._decoding.submit(
                    lambda: endpoint.decode(exchange),
                    lambda decoded: self._decoded(model, endpoint, exchange, decoded),
                )
            else:
                self._queue(model, endpoint, exchange, *endpoint.decode(exchange))
        except Exception as error:  # noqa: BLE001  (a request's, never the loop's)
            self._end(model, exchange, error)

    def _decoded(
        self,
        model: ServedModel,
        endpoint: Endpoint,
        exchange: Exchange,
        decoded: tuple[np.ndarray, Memory] | Exception,
    ) -> None:
        if isinstance(decoded, Exception) or exchange.answered:
            self._end(model, exchange, decoded)
            return
        try:
            self._queue(model, endpoint, exchange, *decoded)
        except Overloaded as error:
            self._end(model, exchange, error)

    def _queue(
        self,
        model: ServedModel,
        endpoint: Endpoint,
        exchange: Exchange,
        raw: np.ndarray,
        memory: Memory,
    ) -> None:
        labels = len(model.predictor.manifest.labels)

        def encoded(answer: Answer) -> Reply | Exception:
            try:
                return endpoint.encode(memory, *answer)
            except Exception as error:  # noqa: BLE001
                return error

        def deliver(answer: Answer | Exception) -> None:
            if isinstance(answer, Exception):
                self._end(model, exchange, answer)
            elif len(raw) * max(10, labels) > _LARGE_ANSWER:
                self._decoding.submit(
                    lambda: encoded(answer), lambda reply: self._end(model, exchange, reply)
                )
            else:
                self._end(model, exchange, encoded(answer))

        exchange.ticket = model.batcher.submit(raw, deliver)

    def _end(self, model: ServedModel, exchange: Exchange, outcome: object) -> None:
        """Send the reply, or what an error makes of it, and count it."""
        model.pending -= 1
        counts = self.metrics.counts
        counts.in_progress -= 1
        if exchange.answered:
            return
        if isinstance(outcome, Reply):
            reply = outcome
        else:
            assert isinstance(outcome, Exception)
            reply = self._refusal(outcome)
        seconds = time.perf_counter() - exchange.arrived
        self.metrics.request(exchange.route, reply.status, seconds)
        model.observer.answered(reply.status, seconds)
        if isinstance(outcome, Overloaded):
            exchange.refuse(reply)
        else:
            exchange.reply(reply)

    def _refusal(self, error: Exception) -> Reply:
        if isinstance(error, Overloaded):
            self.metrics.shed(error.reason)
        elif not isinstance(error, DataError | HTTPException):
            _log.error("a request failed", exc_info=error)
        return error_reply(error)


async def _retire(model: ServedModel) -> None:
    while model.pending:
        await asyncio.sleep(_RETIRED_CHECK_S)
    await model.batcher.close()
