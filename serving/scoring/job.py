"""Offline scoring: files in, parts out, each row once, with the answers of the service.

    parityline score digits pictures.parquet --out scores

A job that was ended, in whatever way, goes on where it was when it is started again, and ends with
the same bytes. See `serving.scoring.folder` for what it writes.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.arrow import IMAGE_COLUMNS, encode_pictures, encode_table, image_column
from artifacts.drift import DriftCounts
from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput
from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from serving.scoring.answers import AnswerForm, Format, Shown
from serving.scoring.chunks import Block, wanted_columns, with_partitions
from serving.scoring.decay import compare
from serving.scoring.engine import run_processes
from serving.scoring.folder import OutFolder
from serving.scoring.open import open_reader
from serving.scoring.scorer import TRIES, UNREADABLE, Scorer, Work, no_more, unpacked
from serving.scoring.sources import Source, find_sources, nearest
from serving.scoring.target import TargetTally
from serving.scoring.true_labels import true_labels
from serving.scoring.units import Reader, Unit

_REJECTED = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
_MOST_REASONS = 10
# What decides about an answer's bits, or those of the file that holds it.
_SOFTWARE = ("parityline", "numpy", "onnxruntime-gpu", "onnxruntime", "pillow", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a job is done; the names are those of the command line.

    columns: of the input, to be written again; None: all of them, without pictures. where: on the
    columns of a partitioned set. limit: rows, from the first. target: a column of known labels.
    workers: processes; None: one a core, or one a device.
    """

    columns: Sequence[str] | None = None
    top_k: int = 0
    probabilities: Shown = "all"
    format: Format = "parquet"
    limit: int | None = None
    where: Sequence[str] = ()
    target: str | None = None
    batch_size: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Progress:
    """share: of the input's bytes, 0 to 1. rows: scored and rejected; now: in this run."""

    share: float
    rows: int
    now: int
    rejected: int
    seconds: float


Engine = Callable[[Work, Iterator[Unit], int, Callable[[dict[str, Any]], None], set[str]], None]


def score(
    predictor: Predictor,
    inputs: Sequence[str],
    out: str | Path,
    options: Options | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Score all rows of the inputs into a folder; the same job again goes on, or is done already.

    predictor: of a bundle that has shown that it answers right here. inputs: files, folders, URLs.
    Returns what `summary.json` says. Raises DataError where the input cannot be read, the folder
    holds another job, or cannot be written.
    """
    options = options or Options()
    job = _Job(predictor, inputs, Path(out), options)
    return job.run(progress or (lambda _: None), engine)


class _Job:
    def __init__(
        self, predictor: Predictor, inputs: Sequence[str], out: Path, options: Options
    ) -> None:
        self.predictor = predictor
        self.manifest: Manifest = predictor.manifest
        self.options = options
        self.spec = self.manifest.input
        self._check()
        pictures = isinstance(self.spec, ImageInput)
        self.sources = find_sources(inputs, pictures=pictures, where=options.where)
        self.form = AnswerForm(
            options.format, options.probabilities, options.top_k, len(self.sources) > 1
        )
        self.form.check(len(self.manifest.labels))
        self.passed = self._passed()
        self.folder = OutFolder(out, options.format)
        self.out = out

    def _check(self) -> None:
        largest = self.manifest.max_batch_size
        size = self.options.batch_size
        if size is not None and not 1 <= size <= largest:
            raise DataError(f"--batch-size: expected 1 to {largest}, found {size}")
        if self.options.limit is not None and self.options.limit < 0:
            raise DataError(f"--limit: expected rows, found {self.options.limit}")

    def _passed(self) -> pa.Schema:
        """What the first file has; that says too what is wrong with the input as a whole."""
        source = self.sources[0]
        try:
            reader = open_reader(source, self.spec)
            try:
                schema = reader.schema
            finally:
                reader.close()
            if source.format not in ("npz", "npy"):
                empty = Block(np.arange(0), schema.empty_table())
                values = with_partitions(empty, source).values
                assert isinstance(values, pa.Table)
                schema = values.schema
                self._check_columns(schema)
        except DataError as error:
            raise DataError(f"{source.name}: {error}") from error
        names = self._passed_names(source, schema)
        if self.options.target is not None and self.options.target not in schema.names:
            raise DataError(
                f"--target: {source.name} has no column {self.options.target!r}"
                f"{nearest(self.options.target, schema.names)}"
            )
        if self.options.target is not None:
            try:
                kind = schema.field(self.options.target).type
                true_labels(pa.nulls(0, kind), self.manifest.labels)
            except DataError as error:
                raise DataError(f"--target {self.options.target}: {error}") from error
        return pa.schema([schema.field(name) for name in names])

    def _check_columns(self, schema: pa.Schema) -> None:
        wanted = wanted_columns(schema, self.spec, ())
        table = schema.empty_table()
        if isinstance(self.spec, ImageInput):
            name = image_column(schema)
            encode_pictures(name, table.column(name).combine_chunks(), self.spec)
            return
        try:
            encode_table(table, self.spec)
        except DataError as error:
            missing = [c.name for c in self.spec.columns if c.name not in wanted]
            others = [name for name in schema.names if name not in wanted]
            hints = [nearest(name, others) for name in missing]
            hint = next((hint for hint in hints if hint), "")
            raise DataError(f"{error}{hint}") from error

    def _passed_names(self, source: Source, schema: pa.Schema) -> list[str]:
        pictures = set(IMAGE_COLUMNS) if isinstance(self.spec, ImageInput) else set()
        there = [name for name in schema.names if name not in pictures]
        if self.options.columns is None:
            if source.format in ("npz", "npy"):
                return []
            # One that is made of path is there for who asks for it.
            made = source.format in ("pictures", "list", "tar")
            return [name for name in there if not (made and name == "folder")]
        for name in self.options.columns:
            if name not in there:
                found = ", ".join(map(repr, there[:20])) or "none"
                raise DataError(
                    f"--columns: {source.name} has no column {name!r} to be written again, "
                    f"found {found}{nearest(name, there)}"
                )
        return list(dict.fromkeys(self.options.columns))

    def description(self) -> dict[str, Any]:
        """What makes it this job and no other."""
        options = self.options
        packages = {}
        for name in _SOFTWARE:
            try:
                packages[name] = version(name)
            except ImportError:
                continue
        return {
            "model": self.manifest.reference,
            "content_sha256": self.manifest.content_sha256,
            "backend": self.predictor.backend,
            "device": self.predictor.device,
            "format": options.format,
            "probabilities": options.probabilities,
            "top_k": options.top_k,
            "columns": list(self.passed.names),
            "limit": options.limit,
            "where": list(options.where),
            "target": options.target,
            "packages": packages,
            "inputs": [
                {"name": source.name, "size": source.size, "stamp": source.stamp}
                for source in self.sources
            ],
        }

    def run(self, progress: Callable[[Progress], None], engine: Engine | None) -> dict[str, Any]:
        self.folder.claim(self.description())
        try:
            before = self.folder.summary()
            if before is not None:
                return before
            return self._score(progress, engine)
        finally:
            self.folder.release()

    def _score(self, progress: Callable[[Progress], None], engine: Engine | None) -> dict[str, Any]:
        began = time.perf_counter()
        recorded = self.folder.keys()
        ended: set[int] = set()
        rows = rejected = done_bytes = 0
        for record in self.folder.records() if recorded else ():
            rows, rejected = rows + record["rows_in"], rejected + len(record["rejected"])
            done_bytes += record["bytes"]
            if record["end"]:
                ended.add(record["source"])
        total = sum(source.size for source in self.sources) or 1
        now = 0

        def done(record: dict[str, Any]) -> None:
            nonlocal rows, rejected, now, done_bytes
            rows, now = rows + record["rows_in"], now + record["rows_in"]
            rejected += record["rejected"]
            done_bytes += record["bytes"]
            share = min(1.0, done_bytes / total)
            progress(Progress(share, rows, now, rejected, time.perf_counter() - began))

        units = (
            unit
            for unit in self._units()
            if unit.key not in recorded and not (unit.rows is None and unit.source in ended)
        )
        work = Work(
            bundle=str(self.predictor.bundle.path),
            content_sha256=self.manifest.content_sha256,
            backend=self.predictor.backend,
            device=self.predictor.device,
            # The paths are in the units that need them.
            sources=tuple(replace(source, pictures=()) for source in self.sources),
            passed=self.passed,
            target=self.options.target,
            form=self.form,
            out=self.out,
            batch_size=self.options.batch_size,
            decoders=_decoders(self.predictor.device),
        )
        first = [unit for _, unit in zip(range(2), units, strict=False)]
        rest = _chained(first, units)
        count = self.options.workers or _workers(self.predictor.device)
        if engine is not None:
            engine(work, rest, count, done, recorded)
        elif count == 1 or len(first) < 2:
            # Not worth the start of other processes.
            Scorer(work, self.predictor).run(rest, done, recorded)
        else:
            run_processes(work, self.predictor, rest, count, done, recorded)
        return self._finish(time.perf_counter() - began)

    def _units(self) -> Iterator[Unit]:
        """Of all sources, up to the limit; where one can be read no further, one that says why."""
        left = self.options.limit
        for source in self.sources:
            number = first = 0
            try:
                with closing(_opened(source, self.spec)) as reader:
                    for unit in reader.units():
                        if left == 0:
                            return
                        if left is not None:
                            rows = _count(reader, left) if unit.rows is None else unit.rows
                            rows = min(rows, left)
                            left -= rows
                            unit = _cut(unit, rows)
                        yield unit
                        number, first = unit.number + 1, unit.first_row + (unit.rows or 0)
            except UNREADABLE as error:
                yield Unit(source.number, number, first, None, error=no_more(error))

    def _finish(self, seconds: float) -> dict[str, Any]:
        """Join the records, one at a time."""
        rows_in = scored = rejected = parts = 0
        counts = [0] * len(self.manifest.labels)
        drift: DriftCounts | None = None
        tally: TargetTally | None = None
        reasons: dict[str, int] = {}
        digests: list[dict[str, Any]] = []
        name = f"rejected.{self.options.format}"
        with self.folder.writer(name) as path, _Rejects(path, self.options.format) as rejects:
            for record in self.folder.records():
                rows_in += record["rows_in"]
                scored += record["rows_scored"]
                rejected += len(record["rejected"])
                counts = [a + b for a, b in zip(counts, record["label_counts"], strict=True)]
                file = self.sources[record["source"]].name
                rejects.write(file, record["rejected"])
                for _, reason in record["rejected"]:
                    if reason in reasons or len(reasons) < 1000:
                        reasons[reason] = reasons.get(reason, 0) + 1
                if record["part"] is not None:
                    parts += 1
                    digests.append({key: record[key] for key in ("part", "rows_scored", "sha256")})
                if record["drift"] is not None:
                    one = DriftCounts.from_json(
                        self.manifest.profile, self.manifest.input, record["drift"]
                    )
                    if drift is None:
                        drift = one
                    else:
                        drift.merge(one)
                if record["target"] is not None:
                    found = TargetTally.from_arrays(unpacked(record["target"]))
                    if tally is None:
                        tally = found
                    else:
                        tally.merge(found)
        often = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:_MOST_REASONS]
        summary = {
            **{key: value for key, value in self.description().items() if key != "inputs"},
            "inputs": len(self.sources),
            "rows_in": rows_in,
            "rows_scored": scored,
            "rows_rejected": rejected,
            "reasons": dict(often),
            "label_counts": dict(zip(self.manifest.labels, counts, strict=True)),
            "drift": drift.figures() if drift is not None else {},
            "target": None if tally is None else self._beside_release(tally),
            "parts": digests,
            "seconds": round(seconds, 3),
        }
        self.folder.finish(summary)
        return summary

    def _beside_release(self, tally: TargetTally) -> dict[str, Any]:
        metrics, calibration = tally.metrics(), tally.calibration()
        then = self.manifest.metrics.get("test")
        return {
            "rows": tally.rows,
            "unlabelled": tally.unlabelled,
            "unknown": tally.unknown,
            "unknown_labels": tally.unknown_names(),
            "undefined": tally.undefined,
            "metrics": metrics and metrics.model_dump(mode="json"),
            "calibration": calibration and calibration.model_dump(mode="json"),
            "beside_release": compare(metrics, then) if metrics and then else None,
        }


class _Rejects:
    """rejected.parquet, .csv or .jsonl, written as it comes."""

    def __init__(self, path: Path, form: Format) -> None:
        self._form = form
        self._table = pq.ParquetWriter(path, _REJECTED) if form == "parquet" else None
        self._text = None if self._table else path.open("w", encoding="utf-8", newline="")
        if self._text is not None and form == "csv":
            csv.writer(self._text).writerow(_REJECTED.names)

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._table, self._text):
            if file is not None:
                file.close()

    def write(self, file: str, rejected: list[tuple[int, str]]) -> None:
        if not rejected:
            return
        rows, reasons = zip(*rejected, strict=True)
        files = [file] * len(rows)
        if self._table is not None:
            self._table.write_table(pa.table([files, rows, reasons], schema=_REJECTED))
            return
        assert self._text is not None
        if self._form == "csv":
            csv.writer(self._text).writerows(zip(files, rows, reasons, strict=True))
        else:
            for row, reason in rejected:
                entry = {"file": file, "row": row, "reason": reason}
                self._text.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _opened(source: Source, spec: ImageInput | TableInput) -> Reader:
    """Tried again where a connection may have been lost."""
    for tried in range(1, TRIES):
        try:
            return open_reader(source, spec)
        except DataError as error:
            if source.is_local or not isinstance(error.__cause__, OSError):
                raise
            time.sleep(tried)
    return open_reader(source, spec)


def _count(reader: Reader, most: int) -> int:
    rows = 0
    for unit, _ in reader.stream(()):
        rows += unit.rows or 0
        if rows >= most:
            return most
    return rows


def _cut(unit: Unit, rows: int) -> Unit:
    return replace(unit, most=rows) if unit.rows is None else replace(unit, rows=rows)


def _chained(first: list[Unit], rest: Iterator[Unit]) -> Iterator[Unit]:
    yield from first
    yield from rest


def _workers(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoders(device: str) -> int:
    """Threads that encode: a GPU would wait for one."""
    return 1 if device == "cpu" else max(1, min(16, _workers("cpu") - 1))
