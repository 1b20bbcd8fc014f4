"""Offline scoring: a file in, Parquet parts out, each row once.

    parityline score digits pictures.npz --out scores

The folder then holds `part-00000.parquet`, ..., `rejected.parquet` (row, reason) and, written
last, `summary.json`: without it the job did not finish.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from serving.readers import Chunk, read_chunks

_REJECTED = pa.schema([("row", pa.int64()), ("reason", pa.string())])


@dataclass(frozen=True)
class ScoreSummary:
    """rows_in = rows_scored + rows_rejected, always."""

    model: str
    backend: str
    device: str
    input: str
    rows_in: int
    rows_scored: int
    rows_rejected: int
    parts: int
    label_counts: dict[str, int]


def score_file(
    predictor: Predictor, path: Path, out: Path, *, batch_size: int | None = None
) -> ScoreSummary:
    """Score the rows of a Parquet, CSV or .npz file into the folder `out`.

    Parts hold the input's columns (pictures left out; one that collides with a column written
    here becomes input_NAME), row (from 0 in the input), label, index, probability, and
    probability_LABEL for each label.
    batch_size: rows at a time through the model; at most and by default the bundle's largest.
    Raises DataError when the input cannot be read or `out` is not empty.
    """
    largest = predictor.manifest.max_batch_size
    if batch_size is not None and batch_size > largest:
        raise DataError(f"--batch-size: expected at most {largest}, found {batch_size}")
    chunks = read_chunks(path, predictor.manifest.input)
    # The first chunk shows what is wrong with the input before anything is written.
    first = next(chunks, None)
    claim = _claim_empty_folder(out)
    written = [claim]
    try:
        head = () if first is None else (first,)
        summary = _score(predictor, itertools.chain(head, chunks), path, out, batch_size, written)
        claim.unlink()
        return summary
    except BaseException as error:
        # Half a result looks like a whole one: a job that ends early leaves none.
        for file in written:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError | pa.ArrowException):
            raise DataError(f"--out {out}: cannot be written: {error}") from error
        raise


def _score(
    predictor: Predictor,
    chunks: Iterable[Chunk],
    path: Path,
    out: Path,
    batch_size: int | None,
    written: list[Path],
) -> ScoreSummary:
    manifest = predictor.manifest
    scored, parts, rejected_rows = 0, 0, 0
    counts = np.zeros(len(manifest.labels), dtype=np.int64)
    rejected_file = out / "rejected.parquet"
    written += [rejected_file, _temporary(rejected_file)]
    with pq.ParquetWriter(_temporary(rejected_file), _REJECTED) as rejects:
        for chunk in chunks:
            if chunk.rejected:
                rows, reasons = zip(*chunk.rejected, strict=True)
                rejects.write_table(pa.table([rows, reasons], schema=_REJECTED))
                rejected_rows += len(rows)
            if not len(chunk.rows):
                continue
            _, probabilities = predictor.run(chunk.raw, batch_size)
            counts += np.bincount(decide(probabilities, manifest.threshold), minlength=len(counts))
            part = out / f"part-{parts:05d}.parquet"
            written += [part, _temporary(part)]
            pq.write_table(answer_table(manifest, chunk, probabilities), _temporary(part))
            _publish(part)
            scored, parts = scored + len(chunk.rows), parts + 1
    _publish(rejected_file)
    summary = ScoreSummary(
        model=manifest.reference,
        backend=predictor.backend,
        device=predictor.device,
        input=str(path),
        rows_in=scored + rejected_rows,
        rows_scored=scored,
        rows_rejected=rejected_rows,
        parts=parts,
        label_counts=dict(zip(manifest.labels, counts.tolist(), strict=True)),
    )
    summary_file = out / "summary.json"
    written += [summary_file, _temporary(summary_file)]
    text = json.dumps(asdict(summary), indent=2) + "\n"
    _temporary(summary_file).write_text(text, encoding="utf-8")
    _publish(summary_file)
    return summary


def answer_table(manifest: Manifest, chunk: Chunk, probabilities: np.ndarray) -> pa.Table:
    """The rows of a part: passed columns, row, label, index, probability, one for each label.

    probabilities: float32 [N, K]; they are stored as they are. label and index are decided at the
    manifest's threshold; probability is that label's.
    """
    index = decide(probabilities, manifest.threshold)
    answers: dict[str, pa.Array] = {
        "row": pa.array(chunk.rows, pa.int64()),
        "label": pa.array(np.array(manifest.labels, dtype=object)[index], pa.string()),
        "index": pa.array(index, pa.int64()),
        "probability": pa.array(probabilities[np.arange(len(index)), index], pa.float32()),
    }
    for position, label in enumerate(manifest.labels):
        column = np.ascontiguousarray(probabilities[:, position])
        answers[f"probability_{label}"] = pa.array(column, pa.float32())
    passed: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(chunk.passed.column_names, chunk.passed.columns, strict=True):
        free = name
        while free in answers or free in passed:
            free = f"input_{free}"
        passed[free] = column
    return pa.table({**passed, **answers})


def _claim_empty_folder(out: Path) -> Path:
    """A new file in the folder, which was empty: of two jobs at once, one gets it."""
    claim = out / ".scoring"
    try:
        out.mkdir(parents=True, exist_ok=True)
        left = sorted(entry.name for entry in out.iterdir())
        if left:
            raise DataError(f"--out {out}: expected a new or empty folder, found {left[0]} in it")
        claim.touch(exist_ok=False)
    except FileExistsError as error:
        raise DataError(f"--out {out}: another job is writing there, or it is a file") from error
    except OSError as error:
        raise DataError(f"--out {out}: {error.strerror}") from error
    return claim


def _temporary(file: Path) -> Path:
    return file.with_name(f".{file.name}")


def _publish(file: Path) -> None:
    """Give a finished file, written under its temporary name, its own."""
    descriptor = os.open(_temporary(file), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _temporary(file).rename(file)
