"""The processes of a job: those that are there help with a short one, and hold up none."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.predictor import Predictor
from serving.scoring.job import Options, score
from serving.scoring.processes import Started
from tests.scored import parts_of

# Of one unit, which is cut into three.
PICTURES = 48
_LONGEST_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in files of their own."""
    found = tmp_path / "pictures"
    found.mkdir()
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = generator.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(found / f"{number:02}.png")
    return found


@pytest.fixture
def other(digits: Predictor) -> Iterator[Started]:
    """One process beside this one."""
    with closing(Started(1, str(digits.bundle.path), "onnx", "cpu")) as started:
        yield started


def test_a_short_job_is_shared_with_a_process_that_is_there(
    digits: Predictor, folder: Path, other: Started, tmp_path: Path
) -> None:
    out = tmp_path / "shared"

    def answers_after_the_other(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        until = time.monotonic() + _LONGEST_S
        while not list(out.glob(".records/0*.json")):
            assert time.monotonic() < until, "no other process has done a unit"
            time.sleep(0.01)
        return digits.model(raw)

    slow = replace(digits, model=answers_after_the_other)
    score(slow, [str(folder)], out, Options(workers=2, batch_size=16), started=other)
    score(digits, [str(folder)], tmp_path / "alone", Options(workers=1, batch_size=16))
    assert len(parts_of(out)) == PICTURES
    assert parts_of(out).equals(parts_of(tmp_path / "alone"))


def test_a_process_that_is_not_ready_when_all_is_done_is_not_waited_for(
    digits: Predictor, folder: Path, other: Started, tmp_path: Path
) -> None:
    (process,) = other._processes
    os.kill(process.process.pid, signal.SIGSTOP)

    def go_on() -> None:
        with suppress(ProcessLookupError):
            os.kill(process.process.pid, signal.SIGCONT)

    waited = threading.Timer(_LONGEST_S, go_on)
    waited.start()
    summary = score(digits, [str(folder)], tmp_path / "out", Options(workers=2), started=other)
    assert waited.is_alive(), "the job waited for a process that had nothing to do"
    waited.cancel()
    assert summary["rows_scored"] == PICTURES
    assert process.process.returncode == -signal.SIGKILL
