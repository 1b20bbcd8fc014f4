"""In the process that starts the workers: a bad bundle is refused, a dead worker replaced, a newly
promoted version taken up, by all workers or by none.

BentoML has circus start the workers, and looks for dead ones every ten seconds. A thread beside it
looks several times a second and has circus start another at once; one that dies before it was
ready is started again more and more slowly, and if that goes on the service ends.

SIGHUP (or, with PARITYLINE_WATCH_S, the clock) has the reference resolved anew. If it stands for
another bundle now, a process of its own checks that; then every worker opens it beside the one that
it serves; and when all have, they are told to take it up. If one cannot, all stay as they are.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.devices import cuda_device_count, one_cuda_device
from artifacts.errors import DataError, ParitylineError
from serving.rundir import VARIABLE, Orders, RunDirectory
from serving.selfcheck import resolved
from serving.settings import PREFIX, Settings, describe, read_settings

_TICK_S = 0.2
# What lies in the place for temporary files unchanged for days may be cleaned up.
_TELL_S = 3600.0
# For all workers to open a bundle beside the one that they serve.
_PREPARE_S = 300.0
_FAILED_STARTS = 5


def worker_count() -> int | str:
    """For BentoML: as set, one for each CUDA device, or one for each core that this may use."""
    text = os.environ.get(f"{PREFIX}WORKERS", "")
    # What is no number is refused, with its name, before anything starts.
    if text.isdigit() and int(text) > 0:
        return int(text)
    on_cpu = os.environ.get(f"{PREFIX}DEVICE") == "cpu" or cuda_device_count() == 0
    return "cpu_count" if on_cpu else cuda_device_count()


def worker_environment() -> dict[str, str]:
    """For a worker: on a machine with several CUDA devices it sees one, by its number."""
    if os.environ.get(f"{PREFIX}DEVICE") == "cpu":
        return {}
    from bentoml._internal.context import server_context

    return one_cuda_device((server_context.worker_index or 1) - 1)


def supervise(parameters: Mapping[str, Any]) -> None:
    """Check, say what is served, and watch from a thread. Exits where the bundle is refused.

    parameters: of `bentoml serve`, its host and port.
    """
    try:
        settings = read_settings()
        path = resolved(settings)
        host, port = _address(parameters)
        _check_address(host, port)
    except ParitylineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    shown = "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104
    shown = f"[{shown}]" if ":" in shown else shown
    if not _checked(path, f"http://{shown}:{port}"):
        raise SystemExit(1)
    print(f"settings: {describe(settings, worker_count())}", flush=True)
    if settings.tokens is None and not _is_loopback(host):
        print(
            f"warning: {host} can be reached by others, and no token is asked for "
            f"({PREFIX}TOKENS names a file of them)",
            file=sys.stderr,
            flush=True,
        )
    _call_nobody()
    directory = RunDirectory.create()
    atexit.register(directory.remove)
    orders = Orders(serve=str(path))
    directory.order(orders)
    os.environ[VARIABLE] = str(directory.path)
    # Workers that share a socket then take turns at connections, where one would take them all.
    os.environ.setdefault("UV_TCP_SINGLE_ACCEPT", "1")
    # circus would replace every worker before the new ones are ready; blocked, the signal waits
    # for the thread that asks for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    supervisor = Supervisor(settings, directory, orders)
    for target in (supervisor.listen, supervisor.watch):
        threading.Thread(target=target, name=f"parityline-{target.__name__}", daemon=True).start()


class Supervisor:
    """Two threads: `listen` for SIGHUP, `watch` over workers and versions."""

    def __init__(self, settings: Settings, directory: RunDirectory, orders: Orders) -> None:
        self._settings = settings
        self._directory = directory
        self._orders = orders
        self._trouble = ""
        self._look = threading.Event()
        # What was asked for last and could not be served: not to be tried at every look.
        self._refused = ""
        self._failed_starts = 0
        self._ended: set[int] = set()
        self._signals: Any = None
        self._stopping = False

    def listen(self) -> None:
        """Each SIGHUP asks for a look at what the reference stands for."""
        while True:
            signal.sigwait({signal.SIGHUP})
            self._look.set()

    def watch(self) -> None:
        """Until the process ends."""
        looked = told = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            try:
                self._take_signals()
                self._replace_dead_workers()
                if time.monotonic() - told >= _TELL_S or self._directory.orders_stamp() == 0:
                    told = time.monotonic()
                    self._directory.order(self._orders)
                due = self._settings.watch_s and time.monotonic() - looked >= self._settings.watch_s
                if due or self._look.is_set():
                    asked = self._look.is_set()
                    self._look.clear()
                    looked = time.monotonic()
                    self._look_for_another(asked)
                self._trouble = ""
            # A full disk, say: what was served goes on, and so does this.
            except Exception as error:  # noqa: BLE001
                trouble = f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    _say(f"trouble while watching over the workers: {trouble}")
                self._trouble = trouble

    def _take_signals(self) -> None:
        """Have circus, which tells the workers to end once, tell them more: see `_stop`."""
        if self._signals is None and _arbiter() is not None:
            self._signals = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            self._signals.handle_term = self._stop
            self._signals.handle_int = lambda: self._stop(at_once=True)

    def _stop(self, at_once: bool = False) -> None:
        """On SIGTERM; a second one, and Ctrl-C, leave the workers no grace period."""
        if at_once or self._stopping:
            for process in _processes():
                if self._directory.report_of(process.pid) is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGINT)
        self._stopping = True
        self._signals.quit()

    def _look_for_another(self, asked: bool) -> None:
        orders = self._orders
        try:
            path = str(resolved(self._settings))
        except ParitylineError as error:
            if asked or str(error) != self._refused:
                _say(f"still serving {_name(orders.serve)}: {error}")
            self._refused = str(error)
            return
        if path == orders.serve:
            self._refused = ""
            if asked:
                _say(f"still serving {_name(orders.serve)}: it is what was asked for")
            return
        if path == self._refused and not asked:
            return
        _say(f"{_name(path)} is to be served instead of {_name(orders.serve)}")
        generation = orders.generation + 1
        failure = None if _checked(Path(path), "") else "it failed its check"
        if failure is None:
            self._tell(Orders(orders.serve, path, generation))
            failure = self._wait_until_prepared(generation)
        if failure is None:
            self._tell(Orders(path, None, generation))
            return
        self._tell(Orders(orders.serve, None, generation))
        self._refused = path
        _say(f"still serving {_name(orders.serve)}: {_name(path)}: {failure}")

    def _tell(self, orders: Orders) -> None:
        self._orders = orders
        self._directory.order(orders)

    def _wait_until_prepared(self, generation: int) -> str | None:
        """Why not; None when every worker has opened it."""
        deadline = time.monotonic() + _PREPARE_S
        while time.monotonic() < deadline:
            self._replace_dead_workers()
            reports = [self._directory.report_of(process.pid) for process in _processes()]
            for report in reports:
                if report and report.prepared == generation and report.error:
                    return report.error
            if reports and all(report and report.prepared == generation for report in reports):
                return None
            time.sleep(_TICK_S)
        return f"the workers have not opened it within {_PREPARE_S:g} s"

    def _replace_dead_workers(self) -> None:
        from circus.process import DEAD_OR_ZOMBIE, UNEXISTING

        if self._stopping:
            return
        processes = _processes()
        dead = [p.pid for p in processes if p.status in (DEAD_OR_ZOMBIE, UNEXISTING)]
        alive = [process.pid for process in processes if process.pid not in dead]
        ready = [pid for pid in alive if self._directory.report_of(pid) is not None]
        new = [pid for pid in dead if pid not in self._ended]
        if not new:
            if alive and ready == alive:
                self._failed_starts = 0
            return
        self._ended.update(new)
        for pid in new:
            if self._directory.report_of(pid) is None:
                self._failed_starts += 1
                _say(f"worker {pid} ended before it was ready")
            else:
                _say(f"worker {pid} ended; another is started")
        if self._failed_starts >= _FAILED_STARTS and not ready:
            _say(f"no worker could start, {self._failed_starts} times: the service ends")
            self._directory.remove()
            os._exit(1)
        if self._failed_starts:
            time.sleep(min(0.5 * 2**self._failed_starts, 8.0))
        _start_missing_workers()


def _address(parameters: Mapping[str, Any]) -> tuple[str, int]:
    """Where BentoML will listen: as told, else as it is configured."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    host = parameters.get("host") or BentoMLContainer.http.host.get()
    port = parameters.get("port") or BentoMLContainer.http.port.get()
    return str(host), int(port)


def _check_address(host: str, port: int) -> None:
    """Raise DataError where nobody can listen: circus would end in a traceback, after the check."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise DataError(
                f"port {port}: expected a free port on {host}, found one in use; --port takes "
                "another"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"host {host}, port {port}: expected an address of this machine: {reason}"
        ) from error


def _call_nobody() -> None:
    """BentoML tells its makers of each start, unless a variable says no; unset, it says no."""
    from bentoml._internal.utils.analytics import usage_stats

    os.environ.setdefault(usage_stats.BENTOML_DO_NOT_TRACK, "True")
    usage_stats.do_not_track.cache_clear()


def _arbiter() -> Any:
    """circus's, once it has taken the signals; it starts and counts the workers."""
    handler = signal.getsignal(signal.SIGTERM)
    controller = getattr(getattr(handler, "__self__", None), "controller", None)
    return getattr(controller, "arbiter", None)


def _processes() -> list[Any]:
    arbiter = _arbiter()
    if arbiter is None:
        return []
    return [process for watcher in arbiter.watchers for process in list(watcher.processes.values())]


def _start_missing_workers() -> None:
    from circus.exc import ConflictError

    arbiter = _arbiter()

    def manage() -> None:
        try:
            for watcher in arbiter.watchers:
                # In a container BentoML would go on with the workers that are left.
                watcher.respawn = True
            arbiter.manage_watchers()
        except ConflictError:
            # It is doing so, or stopping.
            pass

    arbiter.loop.add_callback(manage)


def _checked(path: Path, url: str) -> bool:
    """Whether the bundle can be served, found by a process of its own: this one holds no model
    and no CUDA context for ever."""
    command = [sys.executable, "-m", "serving.selfcheck", str(path), url]
    return subprocess.run(command, check=False).returncode == 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(path: str) -> str:
    return "@".join(Path(path).parts[-2:])


def _say(text: str) -> None:
    print(f"parityline: {text}", file=sys.stderr, flush=True)
