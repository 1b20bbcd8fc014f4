"""A run in progress on disk, so that it can be killed at any instant and continued.

STORE/.training/NAME-ID/, where ID stands for the recipe and the data: `run.json` says what the
run is and which checkpoint is its last; it is replaced after the checkpoint is complete on disk.
The one before is kept. The folder goes when the bundle is released.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from artifacts.errors import DataError, ParitylineError
from artifacts.files import write_file
from artifacts.inputs import first_problem
from training.run_record import CheckpointFile, RunRecord, differences, ground_lines

FOLDER = ".training"
_RECORD, _LOCK, _TEMPORARY = "run.json", "lock", ".tmp-"
# Of the run's time: writing a checkpoint that takes a second is followed by 100 seconds without.
_SHARE = 0.01
_FIRST_AFTER_S = 1.0


class CheckpointError(ParitylineError):
    """A checkpoint that cannot be written, read or continued."""


class Checkpoints:
    """The checkpoints of one run; only the process that holds the folder's lock has them."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder = folder
        self.record = record
        self._number = 1 + max((entry.number for entry in record.checkpoints), default=0)
        self._next = time.monotonic() + _FIRST_AFTER_S
        self.seconds: list[float] = []

    def due(self) -> bool:
        """Whether enough time has passed since the last one, for what writing one takes."""
        return time.monotonic() >= self._next

    def write(self, state: dict[str, Any], *, epoch: int, batch: int) -> None:
        """Write tensors, numbers, texts and lists and dicts of them; the one before is kept.

        Raises CheckpointError where the disk refuses; the one before is untouched then.
        """
        began = time.monotonic()
        name = f"checkpoint-{self._number}.pt"
        temporary = self.folder / f"{_TEMPORARY}{name}"
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            size, digest = _measure(temporary)
            temporary.replace(self.folder / name)
            newest = CheckpointFile(file=name, size=size, sha256=digest, epoch=epoch, batch=batch)
            record = self.record.model_copy(
                update={"checkpoints": (newest, *self.record.checkpoints[:1])}
            )
            _write_record(self.folder, record)
        # torch's writer turns what the disk says into a RuntimeError.
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else _cause(error)
            left = f"that of {self.record.where} is kept" if self.record.checkpoints else "none yet"
            raise CheckpointError(
                f"{self.folder}: a checkpoint could not be written in epoch {epoch}: {reason}; "
                f"{left}: make room, then the same command with --resume goes on from there"
            ) from error
        for entry in self.record.checkpoints[1:]:
            (self.folder / entry.file).unlink(missing_ok=True)
        self.record = record
        self._number += 1
        took = time.monotonic() - began
        self.seconds.append(took)
        self._next = time.monotonic() + took / _SHARE

    def read(self, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state whose file is whole, None before the first, and what to say.

        Newer ones are no longer in the record: what is written next must not push out the one read.
        Raises CheckpointError where there are checkpoints and none can be read.
        """
        problems = []
        for place, entry in enumerate(self.record.checkpoints):
            file = self.folder / entry.file
            problem = _problem(file, entry)
            if problem is None:
                try:
                    state = torch.load(file, map_location=device, weights_only=True)
                # Whole, so written so: by another torch, say.
                except Exception as error:  # noqa: BLE001
                    problem = f"cannot be read: {_cause(error)}"
                else:
                    usable = self.record.checkpoints[place:]
                    self.record = self.record.model_copy(update={"checkpoints": usable})
                    return state, problems
            problems.append(f"checkpoint {entry.file} {problem}")
        if problems:
            raise CheckpointError(
                f"{self.folder}: no checkpoint can be used: {'; '.join(problems)}; without "
                "--resume the run begins anew"
            )
        return None, []

    def remove(self) -> None:
        """Once the bundle is released."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


@contextlib.contextmanager
def open_checkpoints(
    store: Path, name: str, record: RunRecord, *, resume: bool | None
) -> Iterator[tuple[Checkpoints, list[str]]]:
    """The checkpoints of the run that `record` describes, locked, and lines to say.

    resume: go on from what is there; None: where it is of this very run. False: begin anew.
    Raises DataError where another process trains this very run; and when told to resume, where
    there are runs of this name but with another recipe or other data, naming the differences.
    """
    root = store / FOLDER
    folder = root / f"{name}-{record.identity}"
    lines = []
    with contextlib.ExitStack() as held:
        # Not around the yield: what fails in the run itself is not of this folder.
        try:
            root.mkdir(parents=True, exist_ok=True)
            if resume and not (folder / _RECORD).exists():
                _refuse_others(root, name, record)
                lines.append("resume: no checkpoint of this run, so it begins at the beginning")
            held.enter_context(_locked(folder))
            try:
                there = _read_record(folder) if (folder / _RECORD).exists() else None
            except CheckpointError:
                if resume:
                    raise
                there = None
            if there is not None and resume is not False:
                if there.identity != record.identity:
                    raise DataError(f"{folder}: {differences(there, record)}")
                lines += ground_lines(there, record)
                kept = {"run_id": there.run_id, "checkpoints": there.checkpoints}
                record = record.model_copy(update=kept)
            elif there is not None and there.checkpoints:
                lines.append(
                    f"an interrupted run of this recipe is there ({there.where}); it begins anew "
                    "(--resume would have gone on)"
                )
            known = {entry.file for entry in record.checkpoints} | {_RECORD, _LOCK}
            for file in folder.iterdir():
                if file.name not in known:
                    file.unlink()
            _write_record(folder, record)
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror or error}") from error
        yield Checkpoints(folder, record), lines


def _refuse_others(root: Path, name: str, record: RunRecord) -> None:
    """Raise DataError where all interrupted runs of this name are others."""
    others = sorted(
        root.glob(f"{name}-{'[0-9a-f]' * 12}/{_RECORD}"), key=lambda file: file.stat().st_mtime_ns
    )
    if others:
        there = _read_record(others[-1].parent)
        raise DataError(
            f"--resume: the interrupted run of {name!r} ({there.where}) is another: "
            f"{differences(there, record)}. Without --resume this one begins beside it"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / _LOCK).open("a")
        except FileNotFoundError:
            continue  # removed in between by the run that held it
        with file:
            try:
                # No flock: the processes that decode pictures would inherit and outlive it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise DataError(
                    f"another process is training this very recipe on this data ({folder.name}): "
                    "wait for it, or change the recipe (train.seed, --name)"
                ) from error
            try:
                same = (folder / _LOCK).stat().st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                same = False
            if same:
                yield
                return


def _read_record(folder: Path) -> RunRecord:
    file = folder / _RECORD
    try:
        return RunRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{file}: not the record of a run: {first_problem(error)}; without --resume the run "
            "begins anew"
        ) from error


def _write_record(folder: Path, record: RunRecord) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=2) + "\n"
    write_file(folder / _RECORD, text.encode())


def _measure(file: Path) -> tuple[int, str]:
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()


def _problem(file: Path, entry: CheckpointFile) -> str | None:
    try:
        size, digest = _measure(file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != entry.size:
        return f"is damaged: expected {entry.size} bytes, found {size}"
    if digest != entry.sha256:
        return f"is damaged: expected sha256 {entry.sha256[:16]}, found {digest[:16]}"
    return None


def _cause(error: BaseException) -> str:
    """The first line of what the disk said, where torch's own error lies around it."""
    inner = error.__context__ or error.__cause__
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
