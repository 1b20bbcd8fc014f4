"""What a unit of a scoring job holds: bounded memory, whatever the rows and the answers are."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from serving.scoring.open import open_reader
from serving.scoring.sources import find_sources
from serving.scoring.units import LEAST_ROWS, UNIT_ROWS, Unit, UnitSize, end_together
from tests.scored import parts_of, score_file

ROWS = 300


@given(st.integers(2, 10**6))
def test_the_answers_of_a_unit_are_bounded_for_any_number_of_labels(labels: int) -> None:
    size = UnitSize.of(labels)
    assert min(size.rows, size.pictures, size.bytes) >= 1
    assert size.rows * labels * 4 <= max(64 * 2**20, labels * 4)
    assert labels > 64 or size.rows == UNIT_ROWS


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_rows_with_long_cells_make_smaller_units(
    cancer: Predictor, tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.scoring.columnar._HELD_BYTES", 100_000)
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1000).hex() for _ in range(ROWS)]
    columns = [column.name for column in cancer.manifest.input.columns]
    raw = cancer.golden.raw[np.arange(ROWS) % len(cancer.golden.raw)]
    numbers = {name: raw[:, k] for k, name in enumerate(columns)}
    path = tmp_path / f"rows.{format_}"
    sizes = []
    for more in ({}, {"text": texts}):
        write(path, pa.table({**numbers, **more}))
        (source,) = find_sources([str(path)], pictures=False)
        reader = open_reader(source, cancer.manifest.input, UnitSize.of(2))
        units = list(reader.units())
        assert sum(unit.rows or 0 for unit in units) == ROWS
        sizes.append(max(unit.rows or 0 for unit in units))
        for unit in units:
            for block in reader.blocks(unit, reader.schema.names):
                assert isinstance(block.values, pa.Table)
                assert block.values.nbytes <= 200_000
        reader.close()
    assert sizes[1] * 2000 <= 200_000
    assert sizes[1] < sizes[0]
    summary = score_file(cancer, path, tmp_path / "out", workers=1)
    assert summary["rows_scored"] == ROWS
    assert len(summary["parts"]) == len(units)
    assert parts_of(tmp_path / "out")["text"].to_pylist() == texts


def write(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    batches: Sequence[pa.RecordBatch] = table.to_batches(max_chunksize=10)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


@pytest.mark.parametrize("layout", ["folder", "a.tar", "a.tar.gz"])
def test_large_pictures_are_held_few_at_a_time(
    digits: Predictor, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for row, picture in enumerate(digits.golden.raw[:20]):
        (folder / f"{row:02d}.png").write_bytes(encode_png(picture))
    if layout != "folder":
        mode: Literal["w", "w:gz"] = "w:gz" if layout.endswith("gz") else "w"
        with tarfile.open(tmp_path / layout, mode) as archive:
            archive.add(folder, arcname=".")
    largest = max(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr("serving.scoring.pictures._HELD_BYTES", 3 * largest)
    (source,) = find_sources([str(tmp_path / layout)], pictures=True)
    reader = open_reader(source, digits.manifest.input, UnitSize.of(10))
    columns = ["image", "path"]
    blocks = [
        block
        for unit in reader.units()
        for part in (
            [reader.blocks(unit, columns)]
            if unit.rows is not None
            else [blocks for _, blocks in reader.stream(columns)]
        )
        for block in part
    ]
    reader.close()
    assert len(blocks) >= 5
    names = []
    for block in blocks:
        assert isinstance(block.values, pa.Table)
        assert sum(map(len, block.values["image"].to_pylist())) <= 4 * largest
        names += [Path(path).name for path in block.values["path"].to_pylist()]
    assert names == sorted(file.name for file in folder.iterdir())
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(20))


KNOWN = st.builds(
    lambda rows, pictures, can_cut: (rows, pictures, can_cut),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(st.lists(KNOWN, max_size=7), max_size=3))
def test_the_last_units_are_cut_and_hold_the_same_rows(
    sources: list[list[tuple[int | None, bool, bool]]],
) -> None:
    units = []
    for source, held in enumerate(sources):
        first = 0
        for number, (rows, pictures, can_cut) in enumerate(held):
            rows = rows if rows is None or not pictures else rows % 300 + 1
            place = tuple(range(rows)) if pictures and rows else None
            units.append(Unit(source, number, first, rows, place, 3 * (rows or 0), can_cut=can_cut))
            first += rows or 0
    cut = list(end_together(iter(units)))
    kept = len(units) - 4
    assert cut[: max(0, kept)] == units[: max(0, kept)]
    assert sum(unit.bytes for unit in cut) == sum(unit.bytes for unit in units)
    for source in range(len(sources)):
        mine = [unit for unit in cut if unit.source == source]
        # Keys name them in the order of their rows, without a gap.
        assert [unit.number for unit in mine] == list(range(len(mine)))
        at = 0
        for unit in mine:
            assert unit.first_row == at
            at += unit.rows or 0
        assert at == sum(unit.rows or 0 for unit in units if unit.source == source)
        places = [picture for unit in mine for picture in unit.place or ()]
        before = [unit for unit in units if unit.source == source]
        assert places == [picture for unit in before for picture in unit.place or ()]
    fine = [unit for unit in units[-1:] if unit.rows and unit.can_cut and unit.place is None]
    if fine and (fine[0].rows or 0) >= 8 * LEAST_ROWS:
        assert max(unit.rows or 0 for unit in cut[-8:]) <= -(-(fine[0].rows or 0) // 8)
