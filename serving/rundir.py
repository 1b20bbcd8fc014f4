"""The directory that the processes of one running service share: who serves what, what was counted.

orders.json        from the process that started the workers: what to serve, what to prepare
workers/PID.json   from each worker: what it serves, how far it is
counts/PID.json    from each worker: see `serving.metrics`
neighbours/        from each worker: see `serving.neighbours`
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from artifacts.errors import ParitylineError

VARIABLE = "PARITYLINE_RUN_DIRECTORY"


class Orders(msgspec.Struct, frozen=True):
    """serve: the path of the bundle to answer with. prepare: of one to open beside it, or None.

    generation: of `prepare`; it counts up.
    """

    serve: str
    prepare: str | None = None
    generation: int = 0


class Report(msgspec.Struct, frozen=True):
    """serves: NAME@VERSION. prepared: the last generation that was opened, or failed with error."""

    serves: str
    prepared: int = 0
    error: str | None = None


Document = TypeVar("Document", Orders, Report)


class RunDirectory:
    """See the module."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = path / "counts"
        self.neighbours = path / "neighbours"
        self._workers = path / "workers"
        self._orders = path / "orders.json"

    @classmethod
    def create(cls) -> RunDirectory:
        """A new one, which this user alone can read, in the place for temporary files."""
        directory = cls(Path(tempfile.mkdtemp(prefix="parityline-")))
        directory.counts.mkdir()
        directory._workers.mkdir()
        return directory

    @classmethod
    def of_environment(cls) -> RunDirectory | None:
        """The one that the starting process has made."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path)) if path else None

    def order(self, orders: Orders) -> None:
        """Tell the workers."""
        _write(self._orders, orders)

    def orders(self) -> Orders | None:
        """What was told last."""
        return _read(self._orders, Orders)

    def orders_now(self) -> Orders:
        """What was told last. Raises ParitylineError where nothing was: a worker that went its own
        way might serve another version than the others."""
        orders = self.orders()
        if orders is None:
            raise ParitylineError(f"{self._orders}: missing; the starting process writes it again")
        return orders

    def orders_stamp(self) -> int:
        """Changes with the orders, and is cheap to look at."""
        try:
            return self._orders.stat().st_mtime_ns
        except OSError:
            return 0

    def report(self, report: Report) -> None:
        """Tell how this worker is."""
        _write(self._workers / f"{os.getpid()}.json", report)

    def report_of(self, pid: int) -> Report | None:
        """What a worker told last; None before it is ready."""
        return _read(self._workers / f"{pid}.json", Report)

    def remove(self) -> None:
        """At the end."""
        shutil.rmtree(self.path, ignore_errors=True)


def _write(file: Path, document: Orders | Report) -> None:
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(document))
    temporary.replace(file)


def _read(file: Path, kind: type[Document]) -> Document | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
