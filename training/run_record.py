"""What a run in progress is: its recipe, its data, the ground it runs on, its checkpoints."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

from pydantic import Field

from artifacts.errors import DataError
from artifacts.inputs import Frozen

_MOST_DIFFERENCES = 8


class CheckpointFile(Frozen):
    """One file of the folder. epoch: the one it was written in, of so many batches done."""

    file: str = Field(pattern=r"^checkpoint-\d+\.pt$")
    size: int
    sha256: str
    epoch: int
    batch: int

    @property
    def number(self) -> int:
        """How many were written before it."""
        return int(self.file.removeprefix("checkpoint-").removesuffix(".pt"))


class RunRecord(Frozen):
    """`run.json`. checkpoints: the newest first.

    recipe: resolved. data: what the manifest says of it. environment: what the bits of the
    weights depend on besides. run_id: of this attempt, kept by a resume.
    """

    format: int = Field(default=1, ge=1, le=1)
    recipe: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    run_id: str = Field(default_factory=lambda: uuid.uuid4().hex, pattern=r"^[0-9a-f]{32}$")
    checkpoints: tuple[CheckpointFile, ...] = ()

    @property
    def identity(self) -> str:
        """12 hexadecimal digits that stand for recipe and data."""
        what = json.dumps([self.recipe, self.data], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @property
    def where(self) -> str:
        """How far it is, in words."""
        if not self.checkpoints:
            return "before its first checkpoint"
        newest = self.checkpoints[0]
        return f"epoch {newest.epoch}, {newest.batch} batches done"


def differences(there: RunRecord, now: RunRecord) -> str:
    """What of the recipe and the data differs, each with both values."""
    found = []
    for what in ("recipe", "data"):
        before, after = flat(getattr(there, what)), flat(getattr(now, what))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                label = f"data's {key}" if what == "data" else key
                found.append(f"{label}: {before.get(key)!r} then, {after.get(key)!r} now")
    more = len(found) - _MOST_DIFFERENCES
    return "; ".join(found[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def ground_lines(there: RunRecord, now: RunRecord) -> list[str]:
    """A line where a run goes on on another ground than it was begun on.

    Raises DataError for another number of processes.
    """
    before, after = flat(there.environment), flat(now.environment)
    if before.get("processes") != after.get("processes"):
        raise DataError(
            f"--resume: the run was begun by {before.get('processes')} processes, now there are "
            f"{after.get('processes')}: which rows each has depends on it"
        )
    changed = [
        f"{key} {before.get(key)!r} then, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if not changed:
        return []
    return [
        "resume: on another ground, so not bit for bit what the uninterrupted run would have "
        f"given: {'; '.join(changed)}"
    ]


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
