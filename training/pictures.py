"""Labelled pictures from anywhere: looked through once, then arrays or rows decoded when asked for.

A folder of class folders, Parquet as Hugging Face writes it, or an .npz file of pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from training.picture_arrays import read_npz
from training.picture_files import LAYOUTS, ListedPart, list_folder
from training.picture_rows import (
    Bad,
    LabelledPictures,
    Pictures,
    decode_part,
    digest_rows,
    read_headers,
)
from training.picture_tables import list_parquet

__all__ = ["LabelledPictures", "PictureSet", "Pictures", "find_leaks", "load_pictures"]

# Pictures that all have one size keep it up to here; others take the second.
_LARGEST_OWN_SIZE, _DEFAULT_SIZE = 256, (128, 128)


@dataclass(frozen=True)
class PictureSet:
    """parts: "train" always, with all rows where nothing says a split; "validation", "test".

    source: the name of the folder or file. notes: lines for the user.
    """

    source: str
    input: ImageInput
    labels: tuple[str, ...]
    parts: dict[str, LabelledPictures]
    notes: tuple[str, ...]


def load_pictures(
    path: Path,
    *,
    size: tuple[int, int] | None,
    channels: Literal[1, 3] | None,
    fit: Literal["crop", "stretch"],
    interpolation: Literal["bilinear", "bicubic"],
    resize: int | None = None,
    skip_bad: bool,
    memory_bytes: int,
    threads: int | None = None,
) -> PictureSet:
    """The labelled pictures at `path`, each decoded once to see that it can be.

    size: (height, width); None is the pictures' own where all have the same, at most 256 a side,
    and 128 x 128 otherwise. channels: None is 1 where all are grayscale, 3 otherwise. Both look
    at every picture whose header can be read. resize: ImageInput's, where it has one.
    skip_bad: leave out what cannot be decoded, and say so in notes. memory_bytes: decoded parts
    that together are larger are decoded when asked for; .npz files are in memory always, and
    have the size and channels that they have. threads: for decoding, one a core without it.
    Raises DataError for what is none of LAYOUTS; naming every bad picture; for classes without
    pictures, or fewer than two of them.
    """
    options: dict[str, Any] = {"fit": fit, "interpolation": interpolation}
    if resize is not None:
        options["resize"] = resize
    source = path.resolve().name
    if path.suffix.lower() == ".npz" and path.is_file():
        return _from_npz(path, source, size, channels, options)
    labels, listed = _list(path)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        bad: dict[str, Bad] = {part: {} for part in listed}
        if size is None or channels is None:
            headers = {part: read_headers(rows, pool, bad[part]) for part, rows in listed.items()}
            found = set().union(*headers.values())
            size = size or _common_size({header[0] for header in found})
            channels = channels or (1 if found and all(gray for _, gray in found) else 3)
        spec = _spec((channels, *size), options)
        rows = sum(len(part.labels) - len(bad[name]) for name, part in listed.items())
        in_memory = rows * int(np.prod(spec.shape)) <= memory_bytes
        parts = {
            name: decode_part(part, spec, pool, bad[name], in_memory)
            for name, part in listed.items()
        }
    reasons = [
        f"{listed[name].encoded.names[row]}: {reason}"
        for name, of_part in bad.items()
        for row, reason in sorted(of_part.items())
    ]
    if reasons and not skip_bad:
        raise DataError(
            f"pictures that cannot be used: {len(reasons)} (--skip-bad leaves them out)\n  "
            + "\n  ".join(reasons)
        )
    _check_classes(labels, listed, parts)
    notes = tuple(f"skipped {reason}" for reason in reasons)
    return PictureSet(source, spec, labels, parts, notes)


def find_leaks(parts: dict[str, tuple[np.ndarray, Sequence[str]]]) -> list[str]:
    """A line for each two parts that share pictures; [] where none do.

    parts: digests and names by part; a later part is said to be also in an earlier one.
    """
    lines = []
    for (earlier, (known, known_names)), (later, (asked, asked_names)) in combinations(
        parts.items(), 2
    ):
        if not len(known):
            continue
        order = np.argsort(known, kind="stable")
        places = np.searchsorted(known, asked, sorter=order)
        places = order[np.minimum(places, len(known) - 1)]
        shared = np.flatnonzero(known[places] == asked)
        if len(shared):
            first = int(shared[0])
            count = "1 picture" if len(shared) == 1 else f"{len(shared)} pictures"
            lines.append(
                f"leakage: {count} of {later} {'is' if len(shared) == 1 else 'are'} also in "
                f"{earlier} (first: {asked_names[first]} is {known_names[int(places[first])]})"
            )
    return lines


def _list(path: Path) -> tuple[tuple[str, ...], dict[str, ListedPart]]:
    if path.is_file() and path.suffix.lower() == ".parquet":
        return list_parquet([path])
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not entries:
        found = "an empty folder" if path.is_dir() else "a file" if path.is_file() else "nothing"
        raise DataError(f"{path}: expected {LAYOUTS}; found {found}")
    seen = [entry for entry in entries if not entry.name.startswith(".")]
    tables = [entry for entry in seen if entry.suffix.lower() == ".parquet" and entry.is_file()]
    if not tables:
        return list_folder(path)
    folders = [entry.name for entry in seen if entry.is_dir()]
    if folders:
        raise DataError(f"{path}: expected .parquet files or folders, found both ({folders[0]})")
    return list_parquet(tables)


def _from_npz(
    path: Path,
    source: str,
    size: tuple[int, int] | None,
    channels: int | None,
    options: dict[str, Any],
) -> PictureSet:
    labels, read = read_npz(path)
    found = read["train"].pixels.shape[1:]
    asked = (channels or found[0], *(size or found[1:]))
    if asked != found:
        raise DataError(
            f"{path.name}: the pixels of an .npz file are taken as they are, {list(found)}; "
            f"expected {list(asked)}"
        )
    parts = {
        name: LabelledPictures(part.pixels, part.labels, part.names, digest_rows(part.pixels))
        for name, part in read.items()
    }
    _check_classes(labels, parts, parts)
    spec = _spec(found, options)
    return PictureSet(source, spec, labels, parts, ())


def _spec(shape: tuple[int, ...], options: dict[str, Any]) -> ImageInput:
    channels, height, width = shape
    try:
        return ImageInput(channels=channels, height=height, width=width, **options)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"data.resize: {reason} ({height} x {width} pixels)") from error


def _common_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) == 1 and max(max(size) for size in sizes) <= _LARGEST_OWN_SIZE:
        return next(iter(sizes))
    return _DEFAULT_SIZE


def _check_classes(
    labels: tuple[str, ...],
    listed: Mapping[str, ListedPart | LabelledPictures],
    parts: Mapping[str, LabelledPictures],
) -> None:
    """Every class has pictures in train, and in each part where it had any before skipping."""
    for name, part in parts.items():
        counts = np.bincount(part.labels, minlength=len(labels))
        counts_before = np.bincount(listed[name].labels, minlength=len(labels))
        for label, count, before in zip(labels, counts, counts_before, strict=True):
            if not count and (name == "train" or before):
                skipped = f" that can be used ({before} skipped)" if before else ""
                raise DataError(
                    f"class {label!r} of {name}: expected at least one picture, found none{skipped}"
                )
