"""The processes of a job on this machine: how many, how they start, how they are spoken to.

They are started anew, not forked: neither ONNX Runtime nor CUDA outlives a fork. As nothing heavy
is imported here, they can be on their way before this process has imported what it needs itself.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.devices import Device, cuda_device_count, one_cuda_device

if TYPE_CHECKING:
    from serving.scoring.units import Unit

_ROOT = Path(__file__).resolve().parents[2]
# Of input that is surely worth the start of other processes.
_LARGE_BYTES = 32 * 2**20
# Arrow's allocator keeps what is freed for a second: the next chunk is as large, and to give memory
# back and take it again costs a tenth of the time of reading and inference. Kept for ever, memory
# would grow by a fifth until it has every size of pieces that are ever needed.
_ALLOCATOR = {"MIMALLOC_PURGE_DELAY": "1000"}


@dataclass
class Process:
    """One that scores beside this one.

    number: from 1, this one being 0. units: what it has taken and not recorded yet; last: what it
    took last. is_needed: not where all was taken before it could take anything.
    """

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    units: list[Unit] = field(default_factory=list)
    last: Unit | None = None
    is_needed: bool = True

    def send(self, message: Any) -> None:
        """Whether it still lives is seen where it is heard."""
        with suppress(OSError):
            self.connection.send(message)


class Started:
    """Processes that import what they need, and open the bundle, before they have work.

    To be closed; those that a job took are the job's.
    """

    def __init__(self, count: int, bundle: str, backend: str, device: Device) -> None:
        self._device = device
        self._processes = [start(number, device) for number in range(1, count + 1)]
        for process in self._processes:
            process.send(("open", (bundle, backend, device)))

    @classmethod
    def of_job(
        cls,
        inputs: Sequence[str],
        bundle: str,
        backend: str,
        device: Device,
        workers: int | None,
    ) -> Started:
        """As many as the job will want beside this one; of a small one that is not known yet."""
        wanted = (workers or workers_on(device)) - 1
        return cls(wanted if _is_large(inputs) else 0, bundle, backend, device)

    def __bool__(self) -> bool:
        return bool(self._processes)

    def take(self, count: int) -> list[Process]:
        """As many as there are, and new ones."""
        taken = self._processes[:count]
        self._processes = self._processes[count:]
        return taken + [start(n, self._device) for n in range(len(taken) + 1, count + 1)]

    def close(self) -> None:
        """End those that have no work."""
        for process in self._processes:
            process.process.kill()
            process.process.wait()
            process.connection.close()


def start(number: int, device: Device) -> Process:
    """A new process, which waits to be told what to do. number: from 1; on CUDA, of its device."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours.detach())
    environment = {**_ALLOCATOR, **os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"}
    # To look for some takes as long as to import a package.
    environment["PYDANTIC_DISABLE_PLUGINS"] = "1"
    if device == "cuda":
        environment.update(one_cuda_device(number))
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.scoring.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    theirs.close()
    return Process(number, process, connection)


def workers_on(device: Device) -> int:
    """Processes of a job: one a core that this process may use, or one a CUDA device."""
    if device == "cuda":
        return max(1, cuda_device_count())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_arrow() -> None:
    """For a process that does nothing but score, before it imports pyarrow.

    pyarrow would import pandas, to know its objects, at its first array, wherever that is
    installed: a third of a second of each process, and tens of megabytes. It tries once.
    """
    for name, value in _ALLOCATOR.items():
        os.environ.setdefault(name, value)
    import pyarrow as pa

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([0])
        finally:
            sys.meta_path.remove(_NoPandas)


@contextmanager
def without_collection() -> Iterator[None]:
    """While a process imports and opens what it will keep: nothing of it is garbage, then or later.

    Not to look for some makes a start a tenth shorter, and later looks need not go through it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class _NoPandas:
    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _is_large(inputs: Sequence[str]) -> bool:
    size = 0
    for given in inputs:
        with suppress(OSError):
            path = Path(given)
            size += _LARGE_BYTES if path.is_dir() else path.stat().st_size
    return size >= _LARGE_BYTES


def _python_path() -> str:
    """These very packages, wherever they are imported from."""
    given = os.environ.get("PYTHONPATH")
    return f"{_ROOT}{os.pathsep}{given}" if given else str(_ROOT)
