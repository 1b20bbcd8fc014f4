"""What `benchmarks.scoring` scores: real sets, tiled to as many rows as are wanted.

Files are made once, under another name until they are whole, and found again by the next run.
Repeated rows lie further apart than a page of Parquet or a window of its compression reaches.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from artifacts.arrow import encode_table
from artifacts.bundle import Bundle
from artifacts.inputs import TableInput
from benchmarks.peers.models import some_pictures
from training.idx import read_idx_set

_SIDE, _JPEG_QUALITY = 224, 90
_BLOCK_BYTES = 8 * 2**20


def read_anew(path: Path) -> Path:
    """A file, in the page cache as reading puts it there: in larger pieces than writing does."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(_BLOCK_BYTES):
            pass
    return path


def pixels_npy(work: Path, data: Path, rows: int) -> Path:
    """Fashion-MNIST, uint8 [rows, 28, 28]; data holds the idx files."""

    def write(path: Path) -> None:
        images = _fashion(data)
        tiled = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, *images.shape[1:]))
        for start in range(0, rows, len(images)):
            tiled[start : start + len(images)] = images[: rows - start]
        tiled.flush()

    return _made(work / f"pixels-{rows}.npy", write)


def pixels_fixed(
    work: Path, data: Path, rows: int, *, compression: str = "snappy", group_rows: int | None = None
) -> Path:
    """The same as Parquet, `id` and fixed-size binary `pixels`; None for pyarrow's default."""

    def write(path: Path) -> None:
        images = _fashion(data)
        kind = pa.binary(images[0].size)
        whole = pa.FixedSizeBinaryArray.from_buffers(
            kind, len(images), [None, pa.py_buffer(images)]
        )
        table = _with_id(whole, rows)
        pq.write_table(table, path, compression=compression, row_group_size=group_rows)

    name = f"pixels-{rows}-fixed-{compression}-{group_rows or 'default'}.parquet"
    return _made(work / name, write)


def pixels_lists(work: Path, data: Path, rows: int, *, group_rows: int | None) -> Path:
    """The same with `pixels` as list<uint8>; group_rows: None for pyarrow's default."""

    def write(path: Path) -> None:
        images = _fashion(data)
        offsets = np.arange(0, images.size + 1, images[0].size, dtype=np.int32)
        whole = pa.ListArray.from_arrays(offsets, images.reshape(-1))
        pq.write_table(_with_id(whole, rows), path, row_group_size=group_rows)

    return _made(work / f"pixels-{rows}-lists-{group_rows or 'default'}.parquet", write)


def mixed_parquet(work: Path, tabular: Path, rows: int) -> Path:
    """adult.csv's columns as Parquet: numbers as int64, the others as texts."""

    def write(path: Path) -> None:
        pq.write_table(_adult(tabular, rows), path)

    return _made(work / f"table-{rows}.parquet", write)


def mixed_csv(work: Path, tabular: Path, rows: int) -> Path:
    """The same as CSV."""

    def write(path: Path) -> None:
        pyarrow.csv.write_csv(_adult(tabular, rows), path)

    return _made(work / f"table-{rows}.csv", write)


def mixed_raw(work: Path, tabular: Path, rows: int, bundle: Bundle) -> Path:
    """The same as the model's raw input: .npy, float64 [rows, columns]."""

    def write(path: Path) -> None:
        assert isinstance(bundle.manifest.input, TableInput)
        raw, bad = encode_table(_adult(tabular, rows), bundle.manifest.input)
        assert not bad
        with path.open("wb") as file:
            np.save(file, raw)

    return _made(work / f"table-{rows}-{bundle.manifest.version}.npy", write)


def jpegs(work: Path, images: Path, count: int) -> Path:
    """A folder of 224 x 224 colour JPEGs; images: a folder of pictures for each class."""

    def write(path: Path) -> None:
        path.mkdir()
        found = some_pictures(images, count)
        for number in range(count):
            with Image.open(found[number % len(found)]) as picture:
                resized = picture.convert("RGB").resize((_SIDE, _SIDE))
            resized.save(path / f"{number:06d}.jpg", quality=_JPEG_QUALITY)

    return _made(work / f"jpeg-{count}", write)


def pictures_npy(work: Path, images: Path, count: int) -> Path:
    """Such pictures as pixels: .npy, uint8 [count, 3, 224, 224]."""

    def write(path: Path) -> None:
        found = some_pictures(images, count)[:count]
        some = np.empty((len(found), 3, _SIDE, _SIDE), np.uint8)
        for row, file in enumerate(found):
            with Image.open(file) as picture:
                resized = picture.convert("RGB").resize((_SIDE, _SIDE))
            some[row] = np.asarray(resized).transpose(2, 0, 1)
        tiled = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *some.shape[1:]))
        for start in range(0, count, len(some)):
            tiled[start : start + len(some)] = some[: count - start]
        tiled.flush()

    return _made(work / f"pictures-{count}.npy", write)


def _made(path: Path, write: Callable[[Path], None]) -> Path:
    if not path.exists():
        print(f"making {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)
        write(unfinished)
        unfinished.rename(path)
    return path


def _fashion(data: Path) -> np.ndarray:
    """All of its pictures, uint8 [70000, 28, 28]."""
    train, _, test, _ = read_idx_set("fashion-mnist", data)
    return np.concatenate([train, test])


def _adult(tabular: Path, rows: int) -> pa.Table:
    """As pandas reads it, which knows its numbers; pieces of one memory, over and over."""
    frame = pd.read_csv(tabular / "adult.csv", skipinitialspace=True, keep_default_na=False)
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    return pa.concat_tables(_tiled(table, rows))


def _with_id(pixels: pa.Array, rows: int) -> pa.Table:
    return pa.table({"id": np.arange(rows), "pixels": pa.chunked_array(_tiled(pixels, rows))})


def _tiled(whole: pa.Array | pa.Table, rows: int) -> Sequence[pa.Array | pa.Table]:
    return [whole.slice(0, rows - start) for start in range(0, rows, len(whole))]
