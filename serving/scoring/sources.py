"""What there is to score: files, folders and URLs, in the order in which their rows come.

Local paths and every URL that pyarrow's filesystems or fsspec reach. Of a folder all that is in
it counts, in the order of the names; NAME=VALUE in a path is a column of a partitioned set.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import eq, ge, gt, le, lt, ne
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from artifacts.errors import DataError, nearest

TABLES = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "jsonl": (".jsonl", ".ndjson"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "npz": (".npz",),
    "npy": (".npy",),
    "tar": (".tar", ".tar.gz", ".tgz"),
    "list": (".txt", ".lst"),
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SUFFIXES = ".parquet, .csv, .jsonl, .arrow, .feather, .npz, .npy, .tar, .txt (paths of pictures)"
# As Hive writes a missing value into a path.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_CONDITION = re.compile(r"([^=<>!]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_COMPARE = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


@dataclass(frozen=True)
class Source:
    """A file, or a folder of pictures, that has rows.

    name: as it was given, or found below what was given. format: a key of TABLES, or "pictures".
    stamp: changes when its content does. pictures: of a folder of pictures, paths below it.
    """

    number: int
    name: str
    filesystem: fs.FileSystem
    path: str
    format: str
    compressed: bool
    size: int
    stamp: str
    partitions: tuple[tuple[str, str | None], ...] = ()
    pictures: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether reading it twice costs little."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def open(self) -> pa.NativeFile:
        """For reading at any place."""
        return self.filesystem.open_input_file(self.path)

    def stream(self) -> pa.NativeFile:
        """For reading from the start, decompressed."""
        compression = "detect" if self.compressed else None
        return self.filesystem.open_input_stream(self.path, compression=compression)


def find_sources(
    inputs: Sequence[str], *, pictures: bool, where: Sequence[str] = ()
) -> list[Source]:
    """All that there is to score, in order.

    pictures: whether the model takes them. where: conditions such as day>=2026-01-01 on the
    columns of a partitioned set; all must hold.
    Raises DataError for what is not there, cannot be read, or is no such input.
    """
    sources: list[Source] = []
    for given in inputs:
        filesystem, path = _resolve(given)
        try:
            info = filesystem.get_file_info(path)
            found = _found(filesystem, path, info, given, pictures)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{given}: cannot be read: {error}") from error
        if not found:
            raise DataError(f"{given}: expected {_expected(pictures)} in the folder, found none")
        sources += found
    kept = [source for source in sources if _holds(source, where)]
    if not kept:
        raise DataError(f"--where {' '.join(where)}: none of {len(sources)} files is meant")
    return [replace(source, number=number) for number, source in enumerate(kept)]


def format_of(path: str) -> tuple[str, bool] | None:
    """A file's format by its name, and whether it is compressed; None for another."""
    name = path.lower()
    for kind, endings in TABLES.items():
        if name.endswith(endings):
            return kind, name.endswith((".gz", ".tgz"))
        if kind in ("csv", "jsonl") and name.endswith(
            tuple(ending + more for ending in endings for more in _COMPRESSED)
        ):
            return kind, True
    return ("picture", False) if name.endswith(PICTURES) else None


def _expected(pictures: bool) -> str:
    return f"{SUFFIXES}{' or pictures (' + ', '.join(PICTURES) + ')' if pictures else ''}"


def _resolve(given: str) -> tuple[fs.FileSystem, str]:
    if "://" not in given:
        return fs.LocalFileSystem(), os.path.abspath(given)  # noqa: PTH100 - of an fs, not a Path
    try:
        filesystem, path = fs.FileSystem.from_uri(given)
        return filesystem, path
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = error
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{given}: cannot be reached: {reason}") from reason
    try:
        found, path = fsspec.core.url_to_fs(given)
    # Each of its filesystems raises errors of its own, also for what is not installed.
    except Exception as error:
        raise DataError(f"{given}: cannot be reached: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


def _found(
    filesystem: fs.FileSystem, path: str, info: Any, given: str, pictures: bool
) -> list[Source]:
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{given}: expected a file or a folder, found none")
    if info.type == fs.FileType.File:
        return [_source(filesystem, info, given, pictures)]
    entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    files = []
    for entry in sorted(entries, key=lambda entry: str(entry.path)):
        below = entry.path[len(path.rstrip("/")) + 1 :]
        # As _SUCCESS, .crc and the like, which others leave beside their files.
        if entry.type == fs.FileType.File and not any(
            part.startswith((".", "_")) for part in below.split("/")
        ):
            files.append((below, entry))
    kinds = {below: (format_of(below) or ("",))[0] for below, _ in files}
    photos = [(below, entry) for below, entry in files if kinds[below] == "picture"]
    # A list of paths is one that was given as such: a README is none.
    shown = [file for file in files if kinds[file[0]] not in ("", "picture", "list")]
    if photos and pictures:
        if shown:
            raise DataError(
                f"{given}: expected pictures or files with rows, found both: {photos[0][0]} "
                f"and {shown[0][0]}"
            )
        return [_folder_of_pictures(filesystem, path, given, photos)]
    return [
        _source(filesystem, entry, f"{given.rstrip('/')}/{below}", pictures, _partitions(below))
        for below, entry in shown
    ]


def _source(
    filesystem: fs.FileSystem,
    info: Any,
    name: str,
    pictures: bool,
    partitions: tuple[tuple[str, str | None], ...] = (),
) -> Source:
    found = format_of(info.path)
    if found is None or (found[0] in ("picture", "tar", "list") and not pictures):
        raise DataError(f"{name}: expected a file that ends in {_expected(pictures)}")
    kind, compressed = found
    size = max(0, int(info.size or 0))
    stamp = f"{size}:{info.mtime_ns}"
    if kind == "picture":
        base, _, last = info.path.rpartition("/")
        return Source(0, name, filesystem, base, "pictures", False, size, stamp, (), (last,))
    return Source(0, name, filesystem, info.path, kind, compressed, size, stamp, partitions)


def _folder_of_pictures(
    filesystem: fs.FileSystem, path: str, name: str, photos: list[tuple[str, Any]]
) -> Source:
    digest = hashlib.sha256()
    for below, entry in photos:
        digest.update(f"{below}\0{entry.size}\0{entry.mtime_ns}\n".encode())
    size = sum(int(entry.size or 0) for _, entry in photos)
    paths = tuple(below for below, _ in photos)
    return Source(0, name, filesystem, path, "pictures", False, size, digest.hexdigest(), (), paths)


def _partitions(below: str) -> tuple[tuple[str, str | None], ...]:
    found: list[tuple[str, str | None]] = []
    for part in below.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            found.append((unquote(name), None if value == _NO_VALUE else unquote(value)))
    return tuple(found)


def _holds(source: Source, where: Sequence[str]) -> bool:
    values = dict(source.partitions)
    for condition in where:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise DataError(
                f"--where: expected NAME=VALUE, or <, <=, >, >= or !=, found {condition!r}"
            )
        name, sign, wanted = (part.strip() for part in match.groups())
        if name not in values:
            found = ", ".join(map(repr, values)) or "none"
            raise DataError(
                f"--where: {source.name} has no partition {name!r}, found {found}"
                f"{nearest(name, values)}"
            )
        value = values[name]
        if value is None or not _compare(value, sign, wanted):
            return False
    return True


def _compare(value: str, sign: str, wanted: str) -> bool:
    try:
        return bool(_COMPARE[sign](float(value), float(wanted)))
    except ValueError:
        return bool(_COMPARE[sign](value, wanted))
