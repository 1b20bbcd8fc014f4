"""Files read without a copy: the bytes that any reader gives, and errors, not signals."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.predictor import Predictor
from serving.scoring.mapped import MappedFile
from tests.scored import rejected_of, score_file

BYTES = 300_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "file"
    path.write_bytes(np.random.default_rng(0).bytes(BYTES))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, BYTES + 10), st.integers(0, 2 * BYTES)), max_size=5),
    st.integers(0, 2 * BYTES),
)
def test_it_reads_what_a_file_reads(file: Path, reads: list[tuple[int, int]], stop: int) -> None:
    mapped = MappedFile(str(file))
    mapped.read_ahead(stop)
    with file.open("rb") as plain:
        for position, size in reads:
            plain.seek(position)
            mapped.seek(position)
            assert bytes(mapped.read(size)) == plain.read(size)
            assert mapped.tell() == plain.tell()
            assert bytes(mapped.read(7)) == plain.read(7)
    mapped.close()


def test_a_view_is_no_copy_and_is_unmapped_when_it_is_let_go(file: Path) -> None:
    mapped = MappedFile(str(file))
    view = mapped.read(BYTES)
    mapped.close()
    assert isinstance(view, memoryview)
    assert view.readonly
    assert bytes(view) == file.read_bytes()
    assert mappings(file) == 1
    del view
    gc.collect()
    assert mappings(file) == 0


def test_what_is_read_piece_by_piece_is_mapped_once(file: Path) -> None:
    mapped = MappedFile(str(file))
    mapped.read_ahead(BYTES)
    views = [mapped.read(100) for _ in range(BYTES // 100)]
    assert b"".join(views) == file.read_bytes()
    assert mappings(file) == 1
    del views
    mapped.close()
    gc.collect()
    assert mappings(file) == 0


def mappings(file: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(file))


def test_of_a_file_that_was_cut_off_what_is_left_is_read(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(file.read_bytes())
    mapped = MappedFile(str(path))
    assert len(mapped.read(100_000)) == 100_000
    os.truncate(path, 150_000)
    assert bytes(mapped.read(200_000)) == file.read_bytes()[100_000:150_000]
    os.truncate(path, 0)
    assert bytes(mapped.read(200_000)) == b""
    mapped.close()


def test_rows_that_a_cut_off_array_lacks_are_rejected(cancer: Predictor, tmp_path: Path) -> None:
    rows = np.tile(cancer.golden.raw, (20, 1))
    np.save(tmp_path / "rows.npy", rows)
    whole = (tmp_path / "rows.npy").read_bytes()
    (tmp_path / "rows.npy").write_bytes(whole[: len(whole) // 2])
    summary = score_file(cancer, tmp_path / "rows.npy", tmp_path / "out", workers=1)
    assert summary["rows_in"] == len(rows) == summary["rows_rejected"] + summary["rows_scored"]
    assert "bytes more, found" in rejected_of(tmp_path / "out")[0]["reason"]
