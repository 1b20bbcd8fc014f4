"""Offline scoring: files in, parts out, each row once, with the answers of the service.

    parityline score digits pictures.parquet --out scores

A job that was ended, in whatever way, goes on where it was when it is started again, and ends with
the same bytes. See `serving.scoring.folder` for what it writes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from artifacts.devices import Device
from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from serving.scoring.answers import AnswerForm, Format, Shown
from serving.scoring.engine import run_processes
from serving.scoring.folder import OutFolder
from serving.scoring.plan import passed_columns, units_of
from serving.scoring.processes import Started, workers_on
from serving.scoring.scorer import Scorer, Work
from serving.scoring.sources import find_sources
from serving.scoring.summary import join_records
from serving.scoring.units import Unit, end_together

# How units are cut and parts are written: a job that began otherwise cannot go on with these.
_LAYOUT = 4
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
    started: Started | None = None,
) -> dict[str, Any]:
    """Score all rows of the inputs into a folder; the same job again goes on, or is done already.

    predictor: of a bundle that has shown that it answers right here. inputs: files, folders, URLs.
    engine: another than this machine's. started: processes that have opened the bundle already.
    Returns what `summary.json` says. Raises DataError where the input cannot be read, the folder
    holds another job, or cannot be written.
    """
    options = options or Options()
    job = _Job(predictor, inputs, Path(out), options)
    return job.run(progress or (lambda _: None), engine, started)


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
        self.passed = passed_columns(self.sources, self.manifest, options.columns, options.target)
        self.folder = OutFolder(out, options.format)
        self.out = out

    def _check(self) -> None:
        largest = self.manifest.max_batch_size
        size = self.options.batch_size
        if size is not None and not 1 <= size <= largest:
            raise DataError(f"--batch-size: expected 1 to {largest}, found {size}")
        if self.options.limit is not None and self.options.limit < 0:
            raise DataError(f"--limit: expected rows, found {self.options.limit}")

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
            "layout": _LAYOUT,
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

    def run(
        self,
        progress: Callable[[Progress], None],
        engine: Engine | None,
        started: Started | None,
    ) -> dict[str, Any]:
        self.folder.claim(self.description())
        try:
            before = self.folder.summary()
            if before is not None:
                return before
            return self._score(progress, engine, started)
        finally:
            self.folder.release()

    def _score(
        self,
        progress: Callable[[Progress], None],
        engine: Engine | None,
        started: Started | None,
    ) -> dict[str, Any]:
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
        limit = self.options.limit
        now = 0

        def done(record: dict[str, Any]) -> None:
            nonlocal rows, rejected, now, done_bytes
            rows, now = rows + record["rows_in"], now + record["rows_in"]
            rejected += record["rejected"]
            done_bytes += record["bytes"]
            share = min(1.0, max(done_bytes / total, rows / limit if limit else 0.0))
            progress(Progress(share, rows, now, rejected, time.perf_counter() - began))

        every = units_of(self.sources, self.manifest, self.options.limit)
        # Before the last ones are cut: a short job is one.
        first = list(itertools.islice(every, 2))
        units: Iterator[Unit] = (
            unit
            for unit in end_together(itertools.chain(first, every))
            if unit.key not in recorded and not (unit.rows is None and unit.source in ended)
        )
        left = list(itertools.islice(units, 2))
        units = itertools.chain(left, units)
        count = self.options.workers or workers_on(self.predictor.device)
        # Other processes are not always worth their start; those that are there already can help.
        alone = engine is None and (count == 1 or len(left) < 2 or (len(first) < 2 and not started))
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
            decoders=_decoders(self.predictor.device, 1 if alone else count),
        )
        if engine is not None:
            engine(work, units, count, done, recorded)
        elif alone:
            Scorer(work, self.predictor).run(units, done, recorded)
        else:
            run_processes(work, self.predictor, units, count, done, recorded, started)
        joined = join_records(self.folder, self.manifest, self.sources, self.options.format)
        summary = {
            **self.description(),
            "inputs": len(self.sources),
            **joined,
            "seconds": round(time.perf_counter() - began, 3),
        }
        self.folder.finish(summary)
        return summary


def _decoders(device: Device, processes: int) -> int:
    """Threads of each process that encode: on cores that run no model, or feed a GPU."""
    cores = workers_on("cpu")
    if device == "cuda":
        return max(1, min(16, cores // workers_on(device) - 1))
    return 1 if cores >= 2 * processes else 0
