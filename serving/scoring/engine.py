"""A job on this machine: one process a core, or a device; each takes the next unit when it can."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from artifacts.errors import DataError
from artifacts.predictor import Predictor, open_bundle
from serving.scoring.processes import (
    Process,
    Started,
    set_up_arrow,
    start,
    without_collection,
)
from serving.scoring.scorer import Scorer, Work
from serving.scoring.units import Unit

# Units to choose from, for each process.
_IN_VIEW = 32
# How often a unit's process may die before the job is given up.
_DEATHS = 2

Done = Callable[[dict[str, Any]], None]


def run_processes(
    work: Work,
    predictor: Predictor,
    units: Iterator[Unit],
    count: int,
    done: Done,
    recorded: set[str],
    started: Started | None = None,
) -> None:
    """Score all units with `count` processes, of which this is one.

    Raises what a process raised, or DataError where one died over and over. Whatever way it ends,
    no other process is left.
    """
    if started is None:
        others = [start(number, work.device) for number in range(1, count)]
    else:
        others = started.take(count - 1)
    pool = _Pool(work, units, others, done, recorded)
    try:
        pool.run(predictor)
    finally:
        pool.close()


class View:
    """The units that are next, and who should have which."""

    def __init__(self, units: Iterator[Unit], size: int) -> None:
        self._units = units
        self._size = size
        self._next: deque[Unit] = deque()
        self._ended = False

    def give_back(self, unit: Unit) -> None:
        """It has not been done after all."""
        self._next.appendleft(unit)

    @property
    def is_empty(self) -> bool:
        """Whether all have been taken."""
        while len(self._next) < self._size and not self._ended:
            unit = next(self._units, None)
            if unit is None:
                self._ended = True
            else:
                self._next.append(unit)
        return not self._next

    def take(self, last: Unit | None) -> Unit | None:
        """For the process that has had `last`: its successor, as the file is open there; or one
        whose file, or row group, nobody has begun; or the middle of the longest row that is left.
        """
        if self.is_empty:
            return None
        chosen = next(
            (unit for unit in self._next if last is not None and _follows(last, unit)), None
        ) or next((unit for unit in self._next if unit.is_start), None)
        if chosen is None:
            longest: list[Unit] = []
            row: list[Unit] = []
            for unit in self._next:
                row = [*row, unit] if row and _follows(row[-1], unit) else [unit]
                longest = row if len(row) > len(longest) else longest
            chosen = longest[len(longest) // 2]
        self._next.remove(chosen)
        return chosen


def _follows(first: Unit, second: Unit) -> bool:
    return second.source == first.source and second.number == first.number + 1


def _settles(record: dict[str, Any], unit: Unit) -> bool:
    """Whether all rows of a unit are done with this record."""
    if unit.rows is None:
        return bool(record["end"] and record["source"] == unit.source)
    return bool(record["key"] == unit.key)


class _Pool:
    """A thread leads the other processes, while this one scores as they do."""

    def __init__(
        self,
        work: Work,
        units: Iterator[Unit],
        processes: list[Process],
        done: Done,
        recorded: set[str],
    ) -> None:
        self._work = work
        self._view = View(units, _IN_VIEW * (len(processes) + 1))
        self._done = done
        self._recorded = recorded
        self._lock = threading.RLock()
        self._deaths: dict[str, int] = {}
        self._error: BaseException | None = None
        self._closing = False
        self._processes = processes
        self._leader = threading.Thread(target=self._lead)

    def run(self, predictor: Predictor) -> None:
        """Until all is done."""
        for process in self._processes:
            self._instruct(process)
        self._leader.start()
        Scorer(self._work, predictor).run(self._taken(), self._told, self._recorded)
        self._dismiss()
        self._leader.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End what is left."""
        self._closing = True
        for process in list(self._processes):
            process.process.kill()
        if self._leader.ident is not None:
            self._leader.join()
        for process in self._processes:
            # It may have been started meanwhile.
            process.process.kill()
            process.process.wait()
            process.connection.close()

    def _dismiss(self) -> None:
        """Those that have not opened the bundle yet: what is left is in the hands of others."""
        with self._lock:
            if self._error is None and self._view.is_empty:
                for process in list(self._processes):
                    if process.last is None:
                        process.is_needed = False
                        process.process.kill()

    def _taken(self) -> Iterator[Unit]:
        unit = None
        while self._error is None and (unit := self._take(unit)) is not None:
            yield unit

    def _take(self, last: Unit | None) -> Unit | None:
        with self._lock:
            return self._view.take(last)

    def _told(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._recorded.add(record["key"])
            self._done(record)

    def _lead(self) -> None:
        try:
            while self._processes and not self._closing:
                ready = wait([process.connection for process in self._processes])
                for process in list(self._processes):
                    if process.connection in ready and not self._closing:
                        self._hear(process)
        # Whatever it is, it is raised where the job was begun.
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def _instruct(self, process: Process) -> None:
        with self._lock:
            process.send(("work", (self._work, self._recorded)))

    def _hear(self, process: Process) -> None:
        try:
            kind, value = process.connection.recv()
        except (EOFError, OSError):
            self._lost(process)
            return
        if kind == "record":
            process.units = [unit for unit in process.units if not _settles(value, unit)]
            self._told(value)
        elif kind == "next":
            with self._lock:
                unit = self._take(process.last)
                if unit is not None:
                    process.last = unit
                    process.units.append(unit)
            process.send(unit)
        elif kind == "end":
            self._ended(process)
        else:
            raise value

    def _ended(self, process: Process) -> None:
        process.process.wait()
        process.connection.close()
        self._processes.remove(process)

    def _lost(self, process: Process) -> None:
        """It was killed, for want of memory perhaps: another one goes on with its units."""
        status = process.process.wait()
        self._ended(process)
        if not process.is_needed:
            return
        for unit in reversed(process.units):
            self._deaths[unit.key] = self._deaths.get(unit.key, 0) + 1
            if self._deaths[unit.key] >= _DEATHS:
                raise DataError(
                    f"row {unit.first_row} of {self._work.sources[unit.source].name}, or one soon "
                    f"after it, ended the process that scored it {_DEATHS} times ({_cause(status)})"
                )
            with self._lock:
                self._view.give_back(unit)
        if not process.units and process.last is None:
            raise DataError(f"a process that was to score ended at its start ({_cause(status)})")
        self._processes.append(start(process.number, self._work.device))
        self._instruct(self._processes[-1])


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    memory = ", as where there is too little memory" if status == -signal.SIGKILL else ""
    return f"signal {signal.Signals(-status).name}{memory}"


def follow(descriptor: int) -> None:
    """Score what the process at the other end of a socket gives; the end of this one."""
    set_up_arrow()
    connection = Connection(descriptor)
    alone = threading.Lock()

    def send(message: tuple[str, Any]) -> None:
        with alone:
            connection.send(message)

    def units() -> Iterator[Unit]:
        while True:
            send(("next", None))
            unit = connection.recv()
            if unit is None:
                return
            yield unit

    try:
        with without_collection():
            predictor = None
            kind, value = connection.recv()
            if kind == "open":
                bundle, backend, device = value
                predictor = open_bundle(bundle, backend=backend, device=device)
                kind, value = connection.recv()
            work, recorded = value
            if predictor is None:
                predictor = open_bundle(work.bundle, backend=work.backend, device=work.device)
        if predictor.manifest.content_sha256 != work.content_sha256:
            raise DataError(f"{work.bundle}: it is another bundle now")
        Scorer(work, predictor).run(units(), lambda record: send(("record", record)), recorded)
        send(("end", None))
        # All is on disk; to take the interpreter down would only take time.
        os._exit(0)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # Who leads the job is gone.
        os._exit(1)
    except Exception as error:  # noqa: BLE001
        send(("failed", _portable(error)))


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    # What an error of another library needs to be made again is not known.
    except Exception:  # noqa: BLE001
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
