"""A study in one file: Optuna's journal, behind locks that the kernel frees when a process dies.

Optuna's own file locks outlive a killed process by 30 s, and a line torn by a kill or a full disk
makes its backend refuse the file for ever. The lines are Optuna's: its tools read the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation, JournalStorageReplayResult
from optuna.trial import TrialState

from artifacts.errors import ParitylineError

# From a trial's start to its worker's lock on it, which two calls in a row lie between.
START_GRACE_S = 5.0
# How a line begins, Optuna's and ours.
_BEGINNING = b'{"op_code":'
_OPERATIONS = {int(operation) for operation in JournalOperation}
# What a running trial writes down of itself.
_PROGRESS = {
    JournalOperation.CREATE_TRIAL,
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
    JournalOperation.SET_TRIAL_USER_ATTR,
    JournalOperation.SET_TRIAL_SYSTEM_ATTR,
}
# The bytes of the file of locks: whose turn it is, who looks for the dead, then one a trial.
_TURN, _SWEEP, _FIRST_TRIAL = 0, 1, 2
# Nothing ages here: the lock alone counts. A beat takes anew what a stray close() has dropped.
_BEAT_S = 15


class StudyError(ParitylineError):
    """A study, or where it lies, that cannot be used as it is."""


class ByteLocks:
    """Exclusive locks on single bytes of a file, this process's until it frees them or dies.

    They are POSIX locks: no child inherits them, but the process loses all of them when it closes
    any descriptor of the file, and it never meets its own. Hence one object a file and process,
    from `byte_locks`, which keeps its descriptor open and knows what it holds.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held: set[int] = set()
        # Reentrant: a signal's exception may leave the thread that comes back for it.
        self._thread = threading.RLock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """No other thread or process is within its turn meanwhile."""
        with self._thread:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _TURN)
                yield
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _TURN)

    def take(self, byte: int) -> None:
        """Hold this byte, unless another process does. Taking it again changes nothing."""
        # Within the turn, so that another's look at the byte is no hindrance.
        with self.turn():
            if self._lock(byte):
                self._held.add(byte)

    def claim(self, byte: int) -> bool:
        """Hold this byte; False where it is held, by another thread of this process too."""
        with self.turn():
            if byte in self._held or not self._lock(byte):
                return False
            self._held.add(byte)
            return True

    def free(self, byte: int) -> None:
        """Hold this byte no more."""
        with self.turn():
            self._held.discard(byte)
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def is_held(self, byte: int) -> bool:
        """Whether this process or another one holds the byte."""
        with self.turn():
            if byte in self._held or not self._lock(byte):
                return True
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)
            return False

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True


# By process, for a fork inherits neither the locks nor a usable thread lock, and by inode.
_opened: dict[tuple[int, int, int], ByteLocks] = {}
_opening = threading.Lock()


def byte_locks(path: Path) -> ByteLocks:
    """This process's locks on the file, which is made where it is missing.

    Raises OSError.
    """
    with _opening:
        if not path.exists() or _identity(path) not in _opened:
            locks = ByteLocks(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            _opened[_identity(path)] = locks
        return _opened[_identity(path)]


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return os.getpid(), status.st_dev, status.st_ino


class JournalFile(BaseJournalBackend):
    """The lines of a journal, read and appended in turn. What is torn is cut off before a line
    is added, and nobody has been told that it was written."""

    def __init__(self, path: Path, locks: ByteLocks) -> None:
        self._path = path
        self._locks = locks
        # Lines read, and the bytes they take: one value, for a signal may come between two.
        self._place = (0, 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from that one on, counted from 0.

        Raises StudyError for a file that cannot be read or has a line that is no operation.
        """
        if log_number_from != self._place[0]:
            self._place = (0, 0)
        with self._named("read"), self._locks.turn(), self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._place[1]:
                raise StudyError(f"{self._path}: shorter than it was: it has been written over")
            file.seek(self._place[1])
            *lines, _torn = file.read().split(b"\n")
        for line in lines:
            operation = self._operation(line)
            self._place = (self._place[0] + 1, self._place[1] + len(line) + 1)
            if self._place[0] > log_number_from:
                yield operation

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add operations, which a killed process does not take away again.

        They are on the disk when this returns where one of them ends a trial or is about the study:
        with a machine, the progress of running trials may be lost, for a write that waits for the
        disk costs milliseconds, and a trial makes dozens of them.
        Raises StudyError where that fails, on a full disk say; the file is then as it was.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._named("written"), self._locks.turn():
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
            try:
                end = self._cut_torn(descriptor)
                try:
                    while lines:
                        lines = lines[os.write(descriptor, lines) :]
                    if any(log["op_code"] not in _PROGRESS for log in logs):
                        os.fsync(descriptor)
                except OSError:
                    # Where this fails too, the next to append does it.
                    with contextlib.suppress(OSError):
                        os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)

    def _cut_torn(self, descriptor: int) -> int:
        """Cut off a last line without its end; the file's size."""
        size = os.fstat(descriptor).st_size
        if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
            return size
        since = self._place[1]
        tail = os.pread(descriptor, size - since, since).rpartition(b"\n")[2]
        if not _may_begin_a_line(tail):
            raise StudyError(f"{self._path}: not a journal of Optuna's: it ends in {tail[:40]!r}")
        os.ftruncate(descriptor, size - len(tail))
        return size - len(tail)

    def _operation(self, line: bytes) -> dict[str, Any]:
        where = f"{self._path}, line {self._place[0] + 1}"
        try:
            operation = json.loads(line)
        except ValueError:
            operation = None
        if not isinstance(operation, dict) or not {"op_code", "worker_id"} <= operation.keys():
            raise StudyError(f"{where}: expected an operation of Optuna's, found {line[:40]!r}")
        if operation["op_code"] not in _OPERATIONS:
            raise StudyError(
                f"{where}: operation {operation['op_code']} is unknown to Optuna "
                f"{optuna.__version__}"
            )
        return operation

    @contextlib.contextmanager
    def _named(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise StudyError(f"{self._path}: the study cannot be {done}: {reason}") from error


def _may_begin_a_line(text: bytes) -> bool:
    return text[: len(_BEGINNING)] == _BEGINNING[: len(text)]


class JournalStudies(JournalStorage, BaseHeartbeat):
    """Studies in the journal `path`, for the threads and processes of one machine.

    A trial lives while its worker holds the trial's byte of the file of locks beside the journal:
    the kernel frees it at the worker's death, so that nothing has to be waited for.
    """

    def __init__(self, path: Path) -> None:
        # First, so that nothing is put beside what is no journal.
        if path.exists():
            with path.open("rb") as file:
                beginning = file.read(len(_BEGINNING))
            if not _may_begin_a_line(beginning):
                raise StudyError(
                    f"{path}: expected a journal of Optuna's, found a file that begins with "
                    f"{beginning!r}"
                )
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        # Not journal.log.lock: that is what Optuna's own tools make and remove.
        self._locks = byte_locks(path.with_name(path.name + ".locks"))
        self._broken_off = False
        super().__init__(JournalFile(path, self._locks))

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        # Before it: the replay tells one's own operations by the worker's name in them.
        self._mend()
        super()._write_log(op_code, extra_fields)

    def _sync_with_backend(self) -> None:
        self._mend()
        self._broken_off = True
        try:
            super()._sync_with_backend()
        except Exception:
            # Optuna's answer to an operation of this worker, which was counted and refused.
            self._broken_off = False
            raise
        self._broken_off = False

    def _mend(self) -> None:
        """After a signal's exception in the midst of a replay, replay all anew.

        An operation that was counted and not applied would shift the ids of all later trials.
        Under another worker's name, for Optuna raises what it refused one's own worker again.
        """
        if self._broken_off:
            self._worker_id_prefix = f"{uuid.uuid4()}-"
            self._replay_result = JournalStorageReplayResult(self._worker_id_prefix)
            self._broken_off = False

    @contextlib.contextmanager
    def sweeping(self, _study_id: int) -> Iterator[bool]:
        """Whether this one may look for the dead now: False while another process does."""
        ours = self._locks.claim(_SWEEP)
        try:
            yield ours
        finally:
            if ours:
                self._locks.free(_SWEEP)

    def record_heartbeat(self, trial_id: int) -> None:
        """This process works on the trial from now on."""
        self._locks.take(_FIRST_TRIAL + trial_id)

    def end_heartbeat(self, trial_id: int) -> None:
        """It does so no more."""
        self._locks.free(_FIRST_TRIAL + trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        now = time.time()
        return [
            trial._trial_id
            for trial in running
            # Either way: a clock that was set back makes no trial young for hours.
            if abs(now - trial.datetime_start.timestamp()) > START_GRACE_S
            and not self._locks.is_held(_FIRST_TRIAL + trial._trial_id)
        ]

    def get_heartbeat_interval(self) -> int:
        """Seconds."""
        return _BEAT_S

    def get_heartbeat_stale_trial_callback(self) -> Callable[..., None] | None:
        """None: `training.tuning.storage.retry_stale` does it."""
        return None
