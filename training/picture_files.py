"""Labelled picture files in class folders: which there are, and their bytes when asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, overload

import numpy as np
import pyarrow as pa

from artifacts.errors import DataError
from artifacts.pixels import read_header

LAYOUTS = (
    "a folder FOLDER/CLASS/*, the same inside FOLDER/train, val and test, .parquet files with "
    "the columns image and label, or an .npz file with x and y"
)
PARTS = ("train", "validation", "test")
_PART_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_IGNORED = {"thumbs.db", "desktop.ini"}


class Names(Sequence[str]):
    """What messages call each row. One buffer, so that a million cost a worker little to be sent.

    texts: a pyarrow array of binary, UTF-8 but for file names that are not.
    """

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Names: ...
    def __getitem__(self, row: int | slice) -> str | Names:
        if isinstance(row, slice):
            return Names(self.texts[row])
        name: bytes = self.texts[int(row)].as_py()
        return name.decode("utf-8", "backslashreplace")

    def take(self, rows: np.ndarray) -> Names:
        """The names of these rows, int64 [N]."""
        return Names(self.texts.take(pa.array(rows)))


class EncodedRows(Protocol):
    """Encoded pictures by row number. `open` and `read` raise DataError for what is not there."""

    @property
    def names(self) -> Names: ...

    def open(self, row: int) -> BinaryIO: ...

    def read(self, row: int) -> bytes: ...


@dataclass(frozen=True)
class FileRows:
    """Pictures in files of their own. names: their paths under root."""

    root: Path
    names: Names

    def open(self, row: int) -> BinaryIO:
        """The file of a row, for its header."""
        path = self.root / os.fsdecode(self.names.texts[int(row)].as_py())
        try:
            status = path.stat()
            # Opening a pipe would wait for its other end.
            if not stat.S_ISREG(status.st_mode):
                raise DataError("expected a file, found a device or a pipe")
            if status.st_size == 0:
                raise DataError("the file is empty")
            return path.open("rb")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from error

    def read(self, row: int) -> bytes:
        """The bytes of a row's file."""
        with self.open(row) as file:
            try:
                return file.read()
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class ListedPart:
    """Pictures that nobody has decoded yet. labels: int64 [N], indices of classes."""

    encoded: EncodedRows
    labels: np.ndarray


def list_folder(root: Path) -> tuple[tuple[str, ...], dict[str, ListedPart]]:
    """Class names, and the files of each part: of FOLDER/CLASS/*, or FOLDER/PART/CLASS/*.

    Files are in the order of their classes, then of their names; whether they are pictures is
    not looked at. Raises DataError for folders that are neither layout.
    """
    folders, files = _entries(root)
    parts = {name: _PART_FOLDERS.get(name.lower()) for name in folders}
    inside_train = next(
        (_entries(root / name)[0] for name, part in parts.items() if part == "train"), []
    )
    _refuse_pictures(root, "", files)
    if not folders:
        raise DataError(f"{root}: expected {LAYOUTS}; found {files or 'nothing'}")
    if not all(parts.values()) and not inside_train:
        labels = _checked_labels(folders, "")
        return labels, {"train": _list_part(root, "", labels)}
    by_part: dict[str, str] = {}
    for name, part in parts.items():
        if part is None:
            raise DataError(
                f"{name}: expected only the folders train, val and test beside train, found this"
            )
        if part in by_part:
            raise DataError(f"expected one folder for {part}, found {by_part[part]} and {name}")
        by_part[part] = name
    if "train" not in by_part:
        raise DataError(f"expected a folder train beside {', '.join(folders)}, found none")
    labels = _checked_labels(inside_train, by_part["train"])
    return labels, {
        part: _list_part(root, by_part[part], labels) for part in PARTS if part in by_part
    }


def _list_part(root: Path, place: str, labels: tuple[str, ...]) -> ListedPart:
    folders, files = _entries(root / place)
    if place:
        _refuse_pictures(root, place, files)
    for name in folders:
        if name not in labels:
            raise DataError(f"{_join(place, name)}: expected one of train's {len(labels)} classes")
    if not folders:
        raise DataError(f"{place}: expected class folders, found none")
    names: list[bytes] = []
    indices: list[int] = []
    empty: list[str] = []
    for name in folders:
        folder = _join(place, name)
        inside, pictures = _entries(root / folder)
        if inside:
            raise DataError(
                f"{_join(folder, inside[0])}: expected only pictures in a class folder, "
                "found a folder"
            )
        if not pictures:
            empty.append(folder)
        names.extend(os.fsencode(_join(folder, picture)) for picture in pictures)
        indices.extend([labels.index(name)] * len(pictures))
    if empty:
        raise DataError(f"{', '.join(empty)}: expected at least one picture, found none")
    rows = FileRows(root.absolute(), Names(pa.array(names, pa.binary())))
    return ListedPart(rows, np.array(indices, dtype=np.int64))


def _checked_labels(folders: list[str], place: str) -> tuple[str, ...]:
    if len(folders) < 2:
        where = f"{place}: " if place else ""
        raise DataError(f"{where}expected at least two class folders, found {folders}")
    for name in folders:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise DataError(f"{shown}: expected a class folder named in UTF-8") from error
    return tuple(folders)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders in one, and of all else; links are followed."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED:
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    return sorted(folders), sorted(files)


def _refuse_pictures(root: Path, place: str, files: list[str]) -> None:
    for name in files:
        try:
            rows = FileRows(root, Names(pa.array([os.fsencode(_join(place, name))], pa.binary())))
            with rows.open(0) as file:
                read_header(file)
        except DataError:
            continue
        raise DataError(
            f"{rows.names[0]}: expected pictures in class folders alone, "
            "found one without a class beside them"
        )


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
