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
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
from starlette.applications import Starlette

from artifacts.predictor import open_bundle
from serving.admission import Admission
from serving.connection import Connection
from serving.metrics import Metrics
from serving.neighbours import Neighbours
from serving.rundir import Report, RunDirectory
from serving.served import Prepared, model_thread, prepare
from serving.settings import Settings
from serving.tokens import Tokens
from serving.worker import Worker

_log = logging.getLogger("bentoml.parityline")

_TICK_S = 0.2
_TICKS_A_WRITE = 5
_RETRY_S = 2.0
# Open files besides connections.
_OTHER_FILES = 256
# Threads that decode or run the model wait for the interpreter no longer than this.
_SWITCH_S = 0.001


def open_prepared(reference: str, settings: Settings) -> Prepared:
    """The bundle, verified, self-checked on its device and warm. Raises ParitylineError.

    In the thread in which it will run: ONNX Runtime keeps recorded CUDA graphs for each thread.
    """
    thread = model_thread()
    opened = thread.submit(
        lambda: prepare(
            open_bundle(reference, backend=settings.backend, device=settings.device), thread
        )
    )
    try:
        return opened.result()
    except BaseException:
        thread.shutdown(wait=False)
        raise


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
    shared = RunDirectory.of_environment()
    directory = shared or RunDirectory.create()
    parent = os.getppid()
    worker = Worker(prepared, settings, Metrics(directory.counts))
    app.state.worker = worker
    tokens = Tokens(settings.tokens) if settings.tokens else None
    # With OpenTelemetry asked for, every request goes where BentoML traces it.
    short_way = os.environ.get("OTEL_SDK_DISABLED", "true").lower() == "true"
    Connection.admission = admission = Admission(worker, tokens, short_way=short_way)
    sys.setswitchinterval(_SWITCH_S)
    _allow_files(settings.max_connections + _OTHER_FILES)
    if shared is not None:
        admission.neighbours = _meet_neighbours(shared.neighbours)
    _drain_on_sigterm(worker, settings)
    freeze()
    directory.report(Report(worker.model.reference))
    tasks = [
        asyncio.create_task(_watch_connections(admission)),
        asyncio.create_task(_follow_orders(worker, directory, app.state.serves)),
    ]
    if shared is not None:
        tasks.append(asyncio.create_task(_end_without(parent)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if admission.neighbours is not None:
            admission.neighbours.close()
        await worker.close()
        with contextlib.suppress(OSError):
            worker.metrics.write()
        if shared is None or os.getppid() != parent:
            directory.remove()


def _meet_neighbours(directory: Path) -> Neighbours | None:
    """For connections to be shared out evenly. With TLS they stay where the handshake was."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server) or server.config.is_ssl:
        return None
    loop = asyncio.get_running_loop()
    arriving: set[asyncio.Task[None]] = set()

    async def arrive(connection: socket.socket) -> None:
        protocol = Connection(server.config, server.server_state, server.lifespan.state)
        protocol.is_arriving = True
        try:
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            connection.close()
            _log.info("a connection was gone before it arrived: %s", error)
        finally:
            if protocol.is_arriving:
                neighbours.arrived()

    def take(connection: socket.socket) -> None:
        connection.setblocking(False)
        task = loop.create_task(arrive(connection))
        arriving.add(task)
        task.add_done_callback(arriving.discard)

    try:
        neighbours = Neighbours(directory, take)
    except OSError as error:
        _log.warning("connections are not shared out among workers: %s", error)
        return None
    return neighbours


def _allow_files(wanted: int) -> None:
    """Each connection is an open file, of which many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _drain_on_sigterm(worker: Worker, settings: Settings) -> None:
    """Put the grace period before what uvicorn does on SIGTERM; a second one, and SIGINT, cut it
    short. At a SIGINT after that uvicorn leaves what is under way."""
    stop = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()
    told = False

    def terminate(number: int = signal.SIGTERM) -> None:
        nonlocal told
        if callable(stop):
            stop(number if told else signal.SIGTERM, None)
        told = True

    def drain(number: int, frame: FrameType | None) -> None:
        at_once = worker.draining or settings.grace_s == 0 or number == signal.SIGINT
        grace_s = 0.0 if at_once else settings.grace_s
        worker.draining = True
        # An upload that takes its time is given no more than a request's.
        until = loop.time() + grace_s + settings.request_timeout_s
        worker.drain_until = min(worker.drain_until, until)
        if at_once:
            terminate(number)
            return
        _log.info("SIGTERM: not ready any more; connections are taken for %g s", grace_s)
        loop.call_soon_threadsafe(lambda: loop.call_later(grace_s, terminate))

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
        if admission.neighbours is not None:
            if admission.worker.draining:
                admission.neighbours.leave()
            else:
                admission.neighbours.look()
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


async def _end_without(parent: int) -> None:
    """A worker whose starting process was killed would keep the port, and hear of no version."""
    while os.getppid() == parent:
        await asyncio.sleep(_TICK_S)
    _log.error("the process that started the workers is gone: this one ends")
    os.kill(os.getpid(), signal.SIGTERM)


async def _follow_orders(worker: Worker, directory: RunDirectory, serves: str) -> None:
    """Open what is ordered beside what is served, say how that went, and take it up when told."""
    beside: tuple[str, Prepared] | None = None
    seen = 0
    while True:
        await asyncio.sleep(_TICK_S)
        stamp = directory.orders_stamp()
        if stamp in (seen, 0):
            continue
        try:
            orders = directory.orders()
            if orders is None:
                continue
            # What is to be served was prepared, unless this worker began while it was ordered.
            path = orders.serve if orders.serve != serves else orders.prepare
            error = None
            if path is None:
                # What another worker could not open is not kept by this one.
                beside = None
            elif beside is None or beside[0] != path:
                beside, error = await _opened(path, worker.settings)
            if path == orders.serve and beside is not None:
                serves, taken, beside = path, beside[1], None
                worker.take_up(taken)
                freeze()
                _log.info("serving %s", worker.model.reference)
            directory.report(Report(worker.model.reference, orders.generation, error))
            seen = stamp
        # A full disk ends no service; it is tried again.
        except (OSError, msgspec.DecodeError) as failure:
            _log.error("the orders could not be followed: %s", failure)
            await asyncio.sleep(_RETRY_S)


async def _opened(path: str, settings: Settings) -> tuple[tuple[str, Prepared] | None, str | None]:
    """With its path; or None, and why not."""
    try:
        return (path, await asyncio.to_thread(open_prepared, path, settings)), None
    # Whatever it is, memory too: the service goes on with what it has, and says why.
    except Exception as failure:  # noqa: BLE001
        error = str(failure) or type(failure).__name__
        _log.error("%s: %s", path, error)
        return None, error
