"""A worker process from its start to its end: ready, another model, draining, gone.

Not ready before the bundle has been verified, has answered its golden rows and is warm. Orders of
the starting process (`serving.supervisor`) are looked up several times a second. On SIGTERM
readiness goes first; after the grace period uvicorn refuses connections, and what is under way is
answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from types import FrameType

from starlette.applications import Starlette

from artifacts.predictor import open_bundle
from serving.admission import Admission
from serving.connection import Connection
from serving.metrics import Metrics
from serving.rundir import Report, RunDirectory
from serving.served import Prepared, prepare
from serving.settings import Settings
from serving.tokens import Tokens
from serving.worker import Worker

_log = logging.getLogger("bentoml.parityline")

_TICK_S = 0.2
_TICKS_A_WRITE = 5
# Open files besides connections.
_OTHER_FILES = 256
# Threads that decode or run the model wait for the interpreter no longer than this.
_SWITCH_S = 0.001


def open_prepared(reference: str, settings: Settings) -> Prepared:
    """The bundle, verified, self-checked on its device and warm. Raises ParitylineError."""
    predictor = open_bundle(reference, backend=settings.backend, device=settings.device)
    return prepare(predictor)


def freeze() -> None:
    """What start-up made stays for ever: with it out of the collector's way, a full collection
    does not stop requests for 100 ms."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Around all requests. app.state.settings, .prepared and .serves, the path that it was opened
    from, are set when the process was made."""
    settings: Settings = app.state.settings
    prepared: Prepared = app.state.prepared
    directory = RunDirectory.of_environment() or RunDirectory.create()
    worker = Worker(prepared, settings, Metrics(directory.counts))
    app.state.worker = worker
    tokens = Tokens(settings.tokens) if settings.tokens else None
    # With OpenTelemetry asked for, every request goes where BentoML traces it.
    short_way = os.environ.get("OTEL_SDK_DISABLED", "true").lower() == "true"
    Connection.admission = admission = Admission(worker, tokens, short_way=short_way)
    sys.setswitchinterval(_SWITCH_S)
    _allow_files(settings.max_connections + _OTHER_FILES)
    _drain_on_sigterm(worker, settings.grace_s)
    freeze()
    directory.report(Report(worker.model.reference))
    tasks = [
        asyncio.create_task(_watch_connections(admission)),
        asyncio.create_task(_follow_orders(worker, directory, app.state.serves)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await worker.close()
        worker.metrics.write()


def _allow_files(wanted: int) -> None:
    """Each connection is an open file, of which many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _drain_on_sigterm(worker: Worker, grace_s: float) -> None:
    """Put the grace period before what uvicorn does on SIGTERM; a second one, and SIGINT, cut it
    short."""
    stop = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def terminate() -> None:
        if callable(stop):
            stop(signal.SIGTERM, None)

    def drain(number: int, frame: FrameType | None) -> None:
        if worker.draining or grace_s == 0 or number == signal.SIGINT:
            worker.draining = True
            terminate()
            return
        worker.draining = True
        _log.info("SIGTERM: not ready any more; connections are taken for %g s", grace_s)
        loop.call_soon_threadsafe(loop.call_later, grace_s, terminate)

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)


async def _watch_connections(admission: Admission) -> None:
    """End what is late, look for new tokens, publish the counts."""
    ticks = 0
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_TICK_S)
        now = loop.time()
        for connection in list(admission.connections):
            connection.expire(now)
        ticks += 1
        if ticks % _TICKS_A_WRITE == 0:
            admission.worker.counts()
            try:
                admission.worker.metrics.write()
            except OSError as error:
                # A full disk, or a directory that was cleaned up, ends no time limits.
                _log.error("the counts could not be written: %s", error)
            if admission.tokens is not None:
                admission.tokens.refresh()


async def _follow_orders(worker: Worker, directory: RunDirectory, serves: str) -> None:
    """Open what is ordered beside what is served, say how that went, and take it up when told."""
    beside: tuple[str, Prepared] | None = None
    seen = generation = 0
    while True:
        while directory.orders_stamp() == seen:
            await asyncio.sleep(_TICK_S)
        seen = directory.orders_stamp()
        orders = directory.orders()
        if orders is None:
            continue
        # What is to be served was prepared, unless this worker began while it was ordered.
        path = orders.serve if orders.serve != serves else orders.prepare
        if path is None:
            # What another worker could not open is not kept by this one.
            beside = None
            continue
        error = None
        try:
            if beside is None or beside[0] != path:
                beside = (path, await asyncio.to_thread(open_prepared, path, worker.settings))
        # Whatever it is, memory too: the service goes on with what it has, and says why.
        except Exception as failure:  # noqa: BLE001
            error = str(failure) or type(failure).__name__
            _log.error("%s: %s", path, error)
        if error is None and path == orders.serve:
            assert beside is not None
            serves, taken, beside = path, beside[1], None
            worker.take_up(taken)
            freeze()
            _log.info("serving %s", worker.model.reference)
        generation = orders.generation
        directory.report(Report(worker.model.reference, generation, error))
