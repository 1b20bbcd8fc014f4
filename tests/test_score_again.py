"""Jobs that are ended, at any moment, and started again; folders that hold another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.errors import DataError
from artifacts.predictor import Predictor
from serving.scoring import folder, units
from serving.scoring.job import Options, score
from serving.scoring.scorer import Scorer
from tests.conftest import ROOT
from tests.scored import parts_of, score_file


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.scoring.units.UNIT_ROWS", 50)


def bytes_of(out: Path) -> dict[str, bytes]:
    """All that a job wrote, but for how long it took."""
    found = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    summary = json.loads(found["summary.json"])
    assert summary.pop("seconds") >= 0
    return {**found, "summary.json": json.dumps(summary).encode()}


def write_rows(path: Path, predictor: Predictor, count: int) -> None:
    chosen = np.random.default_rng(0).integers(0, len(predictor.golden.raw), count)
    np.savez(path, cells=predictor.golden.raw[chosen])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_job_that_was_ended_goes_on_and_ends_with_the_same_bytes(
    cancer: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_units: None,
    error: BaseException,
) -> None:
    write_rows(tmp_path / "rows.npz", cancer, 400)
    score_file(cancer, tmp_path / "rows.npz", tmp_path / "whole", workers=1)
    expected = bytes_of(tmp_path / "whole")
    for writes in (0, 1, 2, 3, 5, 8, 14, 21):
        out = tmp_path / f"out{writes}"
        left = writes

        def sync(path: Path, sync: Any = folder.sync) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            sync(path)

        with monkeypatch.context() as broken:
            broken.setattr(folder, "sync", sync)
            with pytest.raises((DataError, KeyboardInterrupt)) as raised:
                score_file(cancer, tmp_path / "rows.npz", out, workers=1)
        if isinstance(error, OSError):
            assert "No space left on device" in str(raised.value)
        assert not (out / "summary.json").exists()
        done = {file.stem for file in (out / ".records").glob("*.json")}
        assert all((out / f"part-{key}.parquet").is_file() for key in done)
        score_file(cancer, tmp_path / "rows.npz", out, workers=1)
        assert bytes_of(out) == expected
        assert sorted(file.name for file in out.iterdir() if file.name.startswith(".")) == [".lock"]


def test_what_a_process_left_that_was_killed_as_it_wrote_is_cleared_away(
    cancer: Predictor, tmp_path: Path, small_units: None
) -> None:
    write_rows(tmp_path / "rows.npz", cancer, 100)
    out = tmp_path / "out"

    def leave(progress: object) -> None:
        (out / ".part-00000-00001.parquet.new7").touch()
        (out / ".records" / ".00000-00001.json.new7").touch()

    score(cancer, [str(tmp_path / "rows.npz")], out, Options(workers=1), progress=leave)
    assert [file.name for file in out.iterdir() if file.name.startswith(".")] == [".lock"]


def test_what_is_done_is_not_done_again(
    cancer: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.npz", cancer, 40)
    first = score_file(cancer, tmp_path / "rows.npz", tmp_path / "out")
    monkeypatch.setattr(Scorer, "run", None)
    assert score_file(cancer, tmp_path / "rows.npz", tmp_path / "out") == first


def test_a_folder_of_another_job_is_refused_with_what_differs(
    cancer: Predictor, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.npz", cancer, 40)
    out = tmp_path / "out"
    score_file(cancer, tmp_path / "rows.npz", out)
    before = bytes_of(out)
    with pytest.raises(DataError, match='a job with format "parquet", this one has "csv"'):
        score_file(cancer, tmp_path / "rows.npz", out, format="csv")
    with pytest.raises(DataError, match="a job with limit null, this one has 7"):
        score_file(cancer, tmp_path / "rows.npz", out, limit=7)
    write_rows(tmp_path / "other.npz", cancer, 40)
    with pytest.raises(DataError, match=r"a job without the input .*other\.npz"):
        score_file(cancer, tmp_path / "other.npz", out)
    os.utime(tmp_path / "rows.npz", ns=(1, 1))
    with pytest.raises(DataError, match=r"the input .*rows\.npz has changed since"):
        score_file(cancer, tmp_path / "rows.npz", out)
    assert bytes_of(out) == before


def test_two_jobs_at_once_never_share_a_folder(
    cancer: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.npz", cancer, 40)
    out, run = tmp_path / "out", Scorer.run

    def second_job_meanwhile(*arguments: Any) -> None:
        with pytest.raises(DataError, match="another job is writing there"):
            score_file(cancer, tmp_path / "rows.npz", out)
        run(*arguments)

    monkeypatch.setattr(Scorer, "run", second_job_meanwhile)
    assert score_file(cancer, tmp_path / "rows.npz", out)["rows_scored"] == 40


def processes_of(command: int) -> list[psutil.Process]:
    try:
        return psutil.Process(command).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def start(bundle: Path, source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "parityline", "score", str(bundle), str(source), "--out", str(out),
         "--workers", "2", *more],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_after_sigkill_at_any_moment_a_rerun_ends_with_the_same_bytes(
    cancer: Predictor, tmp_path: Path
) -> None:
    """Promise 4, with processes: every row exactly once, in the same parts."""
    names = [column.name for column in cancer.manifest.input.columns]
    chosen = np.random.default_rng(0).integers(0, len(cancer.golden.raw), 3 * units.UNIT_ROWS)
    rows = cancer.golden.raw[chosen]
    rows[5::1000, 3] = np.inf
    table = pa.table({"id": np.arange(len(rows)), **dict(zip(names, rows.T, strict=True))})
    source = tmp_path / "rows.parquet"
    pq.write_table(table, source, row_group_size=units.UNIT_ROWS // 2)
    bundle = cancer.bundle.path
    whole = start(bundle, source, tmp_path / "whole")
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    expected = bytes_of(tmp_path / "whole")
    out = tmp_path / "out"
    kills = 0
    generator = np.random.default_rng(1)
    for _ in range(40):
        job = start(bundle, source, out)
        while job.poll() is None and not (out / ".records").is_dir():
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0, 1)))
        workers = processes_of(job.pid)
        # The leader, one of the others, or all of them.
        victims = [[job], workers[:1], [job, *workers]][kills % 3]
        for victim in victims:
            try:
                os.kill(victim.pid, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:
                pass
        said, _ = job.communicate(timeout=120)
        psutil.wait_procs(workers, timeout=30)
        if job.returncode == 0:
            break
    assert job.returncode == 0 and kills > 0, said
    assert bytes_of(out) == expected
    assert parts_of(out)["id"].to_pylist() == [i for i in range(len(rows)) if i % 1000 != 5]
