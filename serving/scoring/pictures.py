"""Pictures in files of their own: folders, lists of paths, tar archives as WebDataset has them."""

from __future__ import annotations

import contextlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from artifacts.errors import DataError
from serving.scoring.chunks import Block
from serving.scoring.sources import PICTURES, Source
from serving.scoring.units import Unit, UnitSize

_CHUNK_PICTURES = 64
# A picture's file is smaller by far; what is larger is none.
_MOST_BYTES = 256 * 2**20
_HELD_BYTES = 64 * 2**20
_MOST_CLS_BYTES = 4096
_READ_BYTES = 2**16
_Entry = TypeVar("_Entry", bound=tuple[Any, ...])
_SCHEMA = pa.schema([("image", pa.binary()), ("path", pa.string()), ("folder", pa.string())])


class FilesReader:
    """A folder's pictures, or those that a text names, a line each, relative to where it lies.

    Columns: image; path, as the text has it or below the folder; folder, the last one in path.
    """

    schema = _SCHEMA

    def __init__(self, source: Source, spec: Any, size: UnitSize) -> None:
        self._source = source
        self._unit_pictures = size.pictures
        self._base = source.path
        if source.format == "list":
            self._base = source.path.rpartition("/")[0]

    def units(self) -> Iterator[Unit]:
        """The paths are in them."""
        paths = iter(self._source.pictures or self._lines())
        number = first = 0
        share = self._source.size / max(1, len(self._source.pictures))
        while place := tuple(islice(paths, self._unit_pictures)):
            size = round(share * len(place)) if self._source.pictures else 0
            yield Unit(self._source.number, number, first, len(place), place, size)
            number, first = number + 1, first + len(place)

    def _lines(self) -> Iterator[str]:
        with self._source.stream() as stream:
            rest, passed = b"", 0
            while block := stream.read(_READ_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                for number, line in enumerate(lines, passed + 1):
                    yield from _path(line, number)
                passed += len(lines)
            yield from _path(rest, passed + 1)

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """A picture that cannot be read is rejected alone."""
        numbered = enumerate(unit.place, unit.first_row)
        entries = ((row, path, *self._read(path)) for row, path in numbered)
        for group in _groups(entries, _CHUNK_PICTURES, lambda entry: len(entry[2] or b"")):
            good = [(row, data, path) for row, path, data, _ in group if data is not None]
            rejected = [(row, reason) for row, _, data, reason in group if data is None]
            rows = np.array([row for row, *_ in good], np.int64)
            yield Block(rows, _table([entry[1:] for entry in good], columns), None, rejected)

    def _read(self, path: str) -> tuple[bytes | None, str]:
        """A file's bytes, or None and why there are none."""
        try:
            return self._bytes(path), ""
        except (OSError, pa.ArrowException, DataError) as error:
            return None, f"{path}: cannot be read: {error}"

    def _bytes(self, path: str) -> bytes:
        at = path if path.startswith("/") else f"{self._base}/{path}"
        with self._source.filesystem.open_input_stream(at) as file:
            data = bytes(file.read(_MOST_BYTES + 1))
        if len(data) > _MOST_BYTES:
            raise DataError(f"expected a picture of at most {_MOST_BYTES} bytes, found more")
        return data

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """Every unit is known."""
        raise NotImplementedError

    def close(self) -> None:
        """No file is open in between."""


class TarReader:
    """The pictures in an archive; files that share a name up to its first dot are one sample.

    Columns: image; path, the picture's name in the archive; folder, the last one in path; cls,
    what the sample's .cls file says.
    """

    schema = _SCHEMA.append(pa.field("cls", pa.string()))

    def __init__(self, source: Source, spec: Any, size: UnitSize) -> None:
        self._source = source
        self._unit_pictures = size.pictures
        self._file = source.open()
        self._can_seek = source.is_local and not source.compressed

    def units(self) -> Iterator[Unit]:
        """By the archive's headers, where they can be read alone."""
        if not self._can_seek:
            yield Unit(self._source.number, 0, 0, None, None, self._source.size)
            return
        with _readable(), tarfile.open(fileobj=self._file, mode="r:") as archive:
            found = _samples(archive, lambda member: (member.name, member.offset_data, member.size))
            number = first = 0
            while place := tuple(islice(found, self._unit_pictures)):
                size = sum(entry[2] for entry, _ in place)
                yield Unit(self._source.number, number, first, len(place), place, size)
                number, first = number + 1, first + len(place)

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """From where the headers said."""
        found = (
            (self._file.read_at(min(size, _MOST_BYTES), offset), name, cls)
            for (name, offset, size), cls in unit.place
        )
        first = unit.first_row
        for group in _groups(found, _CHUNK_PICTURES, lambda entry: len(entry[0])):
            yield Block(np.arange(first, first + len(group)), _table(group, columns))
            first += len(group)

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """From the start of an archive that is compressed, or elsewhere."""
        with (
            _readable(),
            self._source.stream() as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            samples = _samples(
                archive, lambda member: (_content(archive, member, _MOST_BYTES), member.name)
            )
            entries = ((*entry, cls) for entry, cls in samples)
            number = first = 0
            for found in _groups(entries, self._unit_pictures, lambda entry: len(entry[0])):
                unit = Unit(self._source.number, number, first, len(found))
                yield unit, self._of(found, first, columns)
                number, first = number + 1, first + len(found)

    def _of(
        self, found: list[tuple[bytes, str, str | None]], first: int, columns: Sequence[str]
    ) -> Iterator[Block]:
        for start in range(0, len(found), _CHUNK_PICTURES):
            part = found[start : start + _CHUNK_PICTURES]
            rows = np.arange(first + start, first + start + len(part))
            yield Block(rows, _table(part, columns))

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _groups(
    entries: Iterable[_Entry], most: int, size: Callable[[_Entry], int]
) -> Iterator[list[_Entry]]:
    """Up to `most` of them together, fewer where they are large."""
    held: list[_Entry] = []
    total = 0
    for entry in entries:
        held.append(entry)
        total += size(entry)
        if len(held) == most or total >= _HELD_BYTES:
            yield held
            held, total = [], 0
    if held:
        yield held


def _path(line: bytes, number: int) -> Iterator[str]:
    """None of a blank line."""
    try:
        path = line.decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"line {number}: not UTF-8: {error}") from error
    if "://" in path:
        raise DataError(f"line {number}: expected a path, found the URL {path!r}")
    if path:
        yield path


def _samples(
    archive: tarfile.TarFile, load: Callable[[tarfile.TarInfo], Any]
) -> Iterator[tuple[Any, str | None]]:
    """What `load` makes of each picture, with its sample's .cls, in the archive's order."""
    key = None
    pictures: list[Any] = []
    cls = None
    for member in archive:
        # What has been passed is not needed again; it would be kept for the whole archive.
        archive.members = []  # type: ignore[attr-defined]
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        this = (folder, name.partition(".")[0])
        if this != key:
            yield from ((picture, cls) for picture in pictures)
            key, pictures, cls = this, [], None
        if name.lower().endswith(PICTURES):
            pictures.append(load(member))
        elif name.endswith(".cls"):
            cls = _content(archive, member, _MOST_CLS_BYTES).decode("utf-8", "replace").strip()
    yield from ((picture, cls) for picture in pictures)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read(most)


def _table(found: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pa.Table:
    """found: (image, path) or (image, path, cls) of each."""
    paths = [entry[1] for entry in found]
    values = {
        "image": pa.array([entry[0] for entry in found], pa.binary()),
        "path": pa.array(paths, pa.string()),
        "folder": pa.array([path.rpartition("/")[0].rpartition("/")[2] for path in paths]),
        "cls": pa.array([entry[2] if len(entry) > 2 else None for entry in found], pa.string()),
    }
    return pa.table({name: values[name] for name in columns})


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error) as error:
        raise DataError(f"not a tar archive, or damaged: {error}") from error
