"""One process that scores: reading, decoding, inference and writing overlap.

A thread reads ahead, this one runs the model, and a last thread writes. Threads encode where cores
are free for it, several where a GPU waits for them; where every core has a model to run, this one
encodes too, as two threads would only take the core's caches and the interpreter from each other. A
stream, which no other process helps to read, has a thread for it in any case. Between them at most
a few chunks wait, whatever the input's size.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.arrow import class_names
from artifacts.decision import decide
from artifacts.devices import Device
from artifacts.drift import DriftCounts
from artifacts.errors import DataError
from artifacts.predictor import Predictor
from serving.scoring.ahead import ahead
from serving.scoring.answers import AnswerForm, answer_table, encode_table
from serving.scoring.batch_size import Batches
from serving.scoring.chunks import Block, Chunk, encode, wanted_columns, with_partitions
from serving.scoring.folder import OutFolder
from serving.scoring.open import open_reader
from serving.scoring.sources import Source
from serving.scoring.target import TargetTally
from serving.scoring.true_labels import true_labels
from serving.scoring.units import Reader, Unit, UnitSize

_AHEAD = 2
# Of a file elsewhere, whose connection may have been lost.
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every process of a job has to know.

    passed: the columns that are written again, with the types that all parts have. decoders:
    threads that encode, 0 for the one that runs the model; batch_size: None for the size that is
    measured to be the fastest.
    """

    bundle: str
    content_sha256: str
    backend: str
    device: Device
    sources: tuple[Source, ...]
    passed: pa.Schema
    target: str | None
    form: AnswerForm
    out: Path
    batch_size: int | None = None
    decoders: int = 0


@dataclass
class _Part:
    """A unit on its way: of each of its chunks the rows, and what the model said of them."""

    unit: Unit
    began: float
    rows: list[np.ndarray] = field(default_factory=list)
    passed: list[pa.Table] = field(default_factory=list)
    probabilities: list[np.ndarray] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    drift: DriftCounts | None = None
    target: TargetTally | None = None


class Scorer:
    """Scores units, in the order they come, into a job's folder."""

    def __init__(self, work: Work, predictor: Predictor) -> None:
        self._work = work
        self._predictor = predictor
        self._manifest = predictor.manifest
        self._folder = OutFolder(work.out, work.form.format)
        self._others = {*work.passed.names, *([work.target] if work.target else [])}
        self._size = UnitSize.of(len(self._manifest.labels))
        self._readers: dict[int, Reader] = {}
        self._batches = Batches(predictor, work.batch_size)

    def run(
        self,
        units: Iterable[Unit],
        done: Callable[[dict[str, Any]], None],
        recorded: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        """Score, write and record them; `done` is told of each, from another thread.

        done: gets key, source, end, rows_in, rejected (how many) and bytes of a unit's record.
        recorded: keys of units of a stream that need not be scored again. Raises CannotWrite.
        """
        decoders = max(1, self._work.decoders)
        with ThreadPoolExecutor(1) as writing, ThreadPoolExecutor(decoders) as decoding:
            waiting: list[Future[None]] = []
            part: _Part | None = None
            for unit, chunk in ahead(self._chunks_of(units, recorded, decoding), _AHEAD * decoders):
                if part is None or part.unit.key != unit.key:
                    part = self._begin(unit)
                if chunk is not None:
                    self._score(part, chunk())
                    continue
                # Its end: one part is written while the next is scored.
                while waiting:
                    waiting.pop().result()
                waiting.append(writing.submit(self._finish, part, done))
                part = None
            for write in waiting:
                write.result()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _begin(self, unit: Unit) -> _Part:
        part = _Part(unit, time.perf_counter())
        if self._manifest.profile:
            part.drift = DriftCounts(self._manifest.profile, self._manifest.input)
        if self._work.target:
            part.target = TargetTally(self._manifest.labels, self._manifest.threshold)
        return part

    def _score(self, part: _Part, chunk: Chunk) -> None:
        part.rejected += chunk.rejected
        if not len(chunk.rows):
            return
        answers = [found for piece in chunk.raw for found in self._batches.probabilities(piece)]
        part.rows.append(chunk.rows)
        part.passed.append(chunk.passed)
        part.probabilities += answers
        if part.drift is not None:
            for piece in chunk.raw:
                part.drift.add(piece)
        if part.target is not None:
            assert chunk.known is not None
            part.target.add(np.concatenate(answers), *chunk.known)

    def _finish(self, part: _Part, done: Callable[[dict[str, Any]], None]) -> None:
        unit = part.unit
        data, counts = (
            self._answers(part) if part.rows else (None, [0] * len(self._manifest.labels))
        )
        scored = sum(counts)
        record = {
            "key": unit.key,
            "source": unit.source,
            # Of a source whose rows were not known: there are no more.
            "end": unit.rows is None,
            "first_row": unit.first_row,
            "rows_in": scored + len(part.rejected),
            "rows_scored": scored,
            "bytes": unit.bytes,
            "label_counts": counts,
            "rejected": part.rejected,
            "drift": part.drift.to_json() if part.drift is not None else None,
            "target": None if part.target is None else packed(part.target.to_arrays()),
            "seconds": round(time.perf_counter() - part.began, 4),
        }
        self._folder.publish(unit.key, data, record)
        brief = {key: record[key] for key in ("key", "source", "end", "rows_in", "bytes")}
        done({**brief, "rejected": len(part.rejected)})

    def _answers(self, part: _Part) -> tuple[bytes | memoryview, list[int]]:
        """A part's file, and how many rows have each label."""
        probabilities = np.concatenate(part.probabilities)
        index = decide(probabilities, self._manifest.threshold)
        table = answer_table(
            self._manifest.labels,
            self._work.form,
            rows=np.concatenate(part.rows),
            passed=pa.concat_tables(part.passed),
            probabilities=probabilities,
            index=index,
            file=self._work.sources[part.unit.source].name,
        )
        counts: list[int] = np.bincount(index, minlength=len(self._manifest.labels)).tolist()
        return encode_table(table, self._work.form.format), counts

    def _chunks_of(
        self, units: Iterable[Unit], recorded: frozenset[str] | set[str], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Unit, Callable[[], Chunk] | None]]:
        """What gives each chunk of a unit, and None at its end."""
        for given in units:
            # The others mostly have nothing to do while a stream is read.
            beside = self._work.decoders > 0 or given.rows is None
            for unit, blocks in self._read(given, recorded):
                for block in blocks:
                    if beside:
                        yield unit, pool.submit(self._encode, unit, block).result
                    else:
                        yield unit, partial(self._encode, unit, block)
                yield unit, None

    def _read(
        self, unit: Unit, recorded: frozenset[str] | set[str]
    ) -> Iterator[tuple[Unit, Iterator[Block]]]:
        if unit.rows is not None:
            yield unit, self._blocks(unit)
            return
        if unit.error is not None:
            yield unit, iter([_nothing([(unit.first_row, unit.error)])])
            return
        end, rest = unit, []
        try:
            reader = self._reader(unit)
            for found, blocks in reader.stream(self._columns(reader)):
                if unit.most is not None:
                    if found.first_row >= unit.most:
                        break
                    rows = min(found.rows or 0, unit.most - found.first_row)
                    found = replace(found, rows=rows)
                if found.key not in recorded:
                    yield found, self._guarded(found, blocks)
                end = replace(
                    unit, number=found.number + 1, first_row=found.first_row + (found.rows or 0)
                )
        except UNREADABLE as error:
            rest = [_nothing([(end.first_row, no_more(error))])]
        yield end, iter(rest)

    def _guarded(self, unit: Unit, blocks: Iterator[Block]) -> Iterator[Block]:
        at = unit.first_row
        try:
            for block in _first(blocks, unit):
                yield block
                at += len(block.rows) + len(block.rejected)
        except UNREADABLE as error:
            assert unit.rows is not None
            reason = unreadable(error)
            yield _nothing([(row, reason) for row in range(at, unit.first_row + unit.rows)])

    def _blocks(self, unit: Unit) -> Iterator[Block]:
        """A unit's rows; those that cannot be read, because of their file, are rejected."""
        at, tries = unit.first_row, 1
        assert unit.rows is not None
        stop = unit.first_row + unit.rows
        while True:
            try:
                reader = self._reader(unit)
                for block in _first(reader.blocks(unit, self._columns(reader)), unit):
                    size = len(block.rows) + len(block.rejected)
                    # What came before a connection was lost has been given already.
                    if len(block.rows) and block.rows[0] < at:
                        continue
                    yield block
                    at += size
                return
            except UNREADABLE as error:
                self._forget(unit.source)
                source = self._work.sources[unit.source]
                if isinstance(error, OSError) and not source.is_local and tries < TRIES:
                    time.sleep(tries)
                    tries += 1
                    continue
                reason = unreadable(error)
                yield _nothing([(row, reason) for row in range(at, stop)])
                return

    def _reader(self, unit: Unit) -> Reader:
        """That of the last unit where it has the same source; one file is open at a time."""
        if unit.source not in self._readers:
            for other in list(self._readers):
                self._forget(other)
            source = self._work.sources[unit.source]
            self._readers[unit.source] = open_reader(source, self._manifest.input, self._size)
        return self._readers[unit.source]

    def _forget(self, source: int) -> None:
        reader = self._readers.pop(source, None)
        if reader is not None:
            with suppress(OSError, pa.ArrowException):
                reader.close()

    def _columns(self, reader: Reader) -> list[str]:
        return wanted_columns(reader.schema, self._manifest.input, self._others)

    def _encode(self, unit: Unit, block: Block) -> Chunk:
        """A block that does not hold the model's columns is rejected as a whole."""
        work = self._work
        try:
            source = work.sources[unit.source]
            block = with_partitions(block, source)
            chunk = encode(block, self._manifest.input, passed=work.passed, target=work.target)
            if chunk.target is None:
                return chunk
            names = None
            if isinstance(block.values, pa.Table):
                names = class_names(block.values.schema, str(work.target))
            return replace(chunk, known=true_labels(chunk.target, self._manifest.labels, names))
        except UNREADABLE as error:
            reason = unreadable(error)
            rejected = [*block.rejected, *((int(row), reason) for row in block.rows)]
            return Chunk.of_rejected(rejected)


UNREADABLE = (DataError, OSError, pa.ArrowException, UnicodeDecodeError)


def unreadable(error: BaseException) -> str:
    """Why rows are rejected that could not be read."""
    return f"cannot be read: {' '.join(str(error).split()).removeprefix('cannot be read: ')}"


def no_more(error: BaseException) -> str:
    """The same of a row after which it is not known how many there are."""
    return f"{unreadable(error)}; this row stands for all from here on"


def _first(blocks: Iterator[Block], unit: Unit) -> Iterator[Block]:
    """Up to the unit's last row: of some units not all rows are wanted."""
    assert unit.rows is not None
    stop = unit.first_row + unit.rows
    for block in blocks:
        inside = int(np.searchsorted(block.rows, stop))
        rejected = [entry for entry in block.rejected if entry[0] < stop]
        if inside == len(block.rows) and len(rejected) == len(block.rejected):
            yield block
            continue
        extra = None if block.extra is None else block.extra[:inside]
        values: Any = block.values
        if isinstance(values, dict):
            values = {name: cells[:inside] for name, cells in values.items()}
        else:
            values = values[:inside]
        yield Block(block.rows[:inside], values, extra, rejected)
        return


def _nothing(rejected: Sequence[tuple[int, str]]) -> Block:
    return Block(np.empty(0, np.int64), pa.table({}), None, rejected)


def packed(arrays: dict[str, np.ndarray]) -> str:
    """Arrays as a text that JSON takes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> dict[str, np.ndarray]:
    """What was packed."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return dict(arrays)
