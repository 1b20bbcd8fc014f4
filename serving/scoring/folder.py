"""The folder that a job writes: parts, a record of each unit, and at the end the summary.

    job.json                   what is scored, and how; a run that differs is refused
    part-00000-00000.parquet   the rows of a source's unit; the names are in the order of the rows
    .records/00000-00000.json  written once the part is there: the unit is done
    rejected.parquet           file, row, reason
    summary.json               the last one: the job is done

Each file is written under another name, synced and renamed. After a kill whatever has no record
is done again, and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.errors import DataError
from artifacts.files import sync

JOB, SUMMARY, _RECORDS, _LOCK = "job.json", "summary.json", ".records", ".lock"


class CannotWrite(DataError):
    """The folder takes no more; what is recorded stays."""


class OutFolder:
    """Where a job's results are; any number of processes write parts, one leads the job."""

    def __init__(self, path: Path, suffix: str) -> None:
        """suffix: of the parts, such as "parquet"."""
        self.path = path
        self._suffix = suffix
        self._lock: int | None = None

    def claim(self, job: dict[str, Any]) -> None:
        """Begin this job here, or go on with it. Raises DataError where another is."""
        try:
            self._claim(job)
        except BaseException:
            self.release()
            raise

    def _claim(self, job: dict[str, Any]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = self._read(JOB)
            left = sorted(entry.name for entry in self.path.iterdir() if entry.name != _LOCK)
            if found is None and left and left != [_RECORDS]:
                raise DataError(
                    f"--out {self.path}: expected a new or empty folder, or this job's, "
                    f"found {left[0]} in it"
                )
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"--out {self.path}: another job is writing there") from error
            found = self._read(JOB)
            if found is not None:
                self._compare(found, job)
            (self.path / _RECORDS).mkdir(exist_ok=True)
            for temporary in (*self.path.glob(".*.new*"), *self.path.glob(f"{_RECORDS}/.*.new*")):
                temporary.unlink(missing_ok=True)
            if found is None:
                self._write(self.path / JOB, (json.dumps(job, indent=2) + "\n").encode())
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"--out {self.path}: expected a folder, found a file") from error
        except OSError as error:
            raise CannotWrite(f"--out {self.path}: {error.strerror}") from error

    def release(self) -> None:
        """Let others lead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def summary(self) -> dict[str, Any] | None:
        """That of a job that is done."""
        return self._read(SUMMARY)

    def records(self) -> Iterator[dict[str, Any]]:
        """Of the units that are done, in the order of the rows; one at a time is in memory."""
        for file in sorted((self.path / _RECORDS).glob("[0-9]*.json")):
            yield json.loads(file.read_bytes())

    def keys(self) -> set[str]:
        """Of the units that are done."""
        return {file.stem for file in (self.path / _RECORDS).glob("[0-9]*.json")}

    def publish(self, key: str, part: bytes | memoryview | None, record: dict[str, Any]) -> None:
        """Write a unit's part, if it has rows, then its record. Raises CannotWrite."""
        record = {**record, "part": None, "sha256": None}
        with self._writing():
            if part is not None:
                name = f"part-{key}.{self._suffix}"
                self._write(self.path / name, part)
                record["part"], record["sha256"] = name, hashlib.sha256(part).hexdigest()
            self._write(self.path / _RECORDS / f"{key}.json", json.dumps(record).encode())

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Path]:
        """A path to write to; what is there at the end of the block becomes the file."""
        temporary = self.path / f".{name}.new{os.getpid()}"
        with self._writing():
            try:
                yield temporary
                sync(temporary)
                temporary.replace(self.path / name)
            finally:
                temporary.unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        """The job is done; its records are in the summary."""
        with self._writing():
            self._write(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        # With what a process left that was killed as it wrote.
        shutil.rmtree(self.path / _RECORDS, ignore_errors=True)
        for temporary in self.path.glob(".*.new*"):
            temporary.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self.path / name}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"{self.path / name}: expected an object")
        return found

    def _compare(self, found: dict[str, Any], job: dict[str, Any]) -> None:
        job = json.loads(json.dumps(job))
        for key in [*job, *(key for key in found if key not in job)]:
            before, now = found.get(key), job.get(key)
            if before != now:
                if key == "inputs":
                    raise DataError(f"--out {self.path}: {_other_inputs(before, now)}")
                if key == "layout":
                    raise DataError(
                        f"--out {self.path}: it was begun by another version of parityline; "
                        "take another folder"
                    )
                raise DataError(
                    f"--out {self.path}: it holds a job with {key} {_short(before)}, this one has "
                    f"{_short(now)}; take another folder, or the same {key}"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotWrite(
                f"--out {self.path}: cannot be written: {error.strerror}; what is done stays: "
                "the same command goes on from there"
            ) from error

    def _write(self, file: Path, data: bytes | memoryview) -> None:
        # Another process may be at the same unit, left over from a job whose leader was killed.
        temporary = file.with_name(f".{file.name}.new{os.getpid()}")
        try:
            temporary.write_bytes(data)
            sync(temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        sync(file.parent)


def _other_inputs(before: Any, now: Any) -> str:
    then = {entry["name"]: entry for entry in before or []}
    here = {entry["name"]: entry for entry in now}
    for name, entry in here.items():
        if name not in then:
            return f"it holds a job without the input {name}; take another folder"
        if entry != then[name]:
            return f"the input {name} has changed since that job began; take another folder"
    missing = next((name for name in then if name not in here), "in another order")
    return f"it holds a job of other inputs: {missing}; take another folder"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
