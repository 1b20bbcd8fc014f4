"""MNIST's idx files: found in a folder in any usual layout, or downloaded by torchvision.

The format: two zero bytes, a type byte (8: uint8), the number of dimensions, each dimension as a
big-endian uint32, then the values (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from artifacts.errors import DataError

_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
DOWNLOAD_FOLDER = Path("data")
# More than any set in this format; a damaged header must not ask for all the memory there is.
_MAX_BYTES = 4 * 2**30


def read_idx_set(
    source: str, folder: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels.

    Images are uint8 [N, H, W], labels int64 [N]. folder: holds the four files, plain or .gz, flat
    or in torchvision's layout; None takes DOWNLOAD_FOLDER and downloads what is not there.
    """
    if folder is None:
        folder = DOWNLOAD_FOLDER
        if _find(folder, source, "train-images-idx3-ubyte") is None:
            _download(source, folder)
    elif not folder.is_dir():
        raise DataError(f"data folder {folder}: expected a directory, found none")
    arrays = []
    for part in ("train", "t10k"):
        images = _read(folder, source, f"{part}-images-idx3-ubyte", dimensions=3)
        labels = _read(folder, source, f"{part}-labels-idx1-ubyte", dimensions=1)
        if len(images) != len(labels):
            raise DataError(f"{folder}: {part}: {len(images)} images but {len(labels)} labels")
        if images.size == 0:
            raise DataError(f"{folder}: {part}: expected images, found shape {images.shape}")
        arrays += [images, labels.astype(np.int64)]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder}: training images are {arrays[0].shape[1:]}, test {arrays[2].shape[1:]}"
        )
    return cast(tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple(arrays))


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """One idx file of uint8 values, .gz or plain. Raises DataError naming what is wrong."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return _parse(cast(BinaryIO, file), path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parse(file: BinaryIO, path: Path, dimensions: int) -> np.ndarray:
    magic = file.read(4)
    expected = bytes((0, 0, 8, dimensions))
    if magic != expected:
        raise DataError(
            f"{path}: expected the idx magic {expected.hex()} (uint8, {dimensions} dimensions), "
            f"found {magic.hex() or 'an empty file'}"
        )
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"{path}: cut short in its header")
    shape = struct.unpack(f">{dimensions}I", header)
    size = math.prod(shape)
    if size > _MAX_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_BYTES} bytes, its header says {shape}")
    data = file.read(size + 1)
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more"
        raise DataError(f"{path}: expected {size} bytes for shape {shape}, found {found}")
    return np.frombuffer(bytearray(data), dtype=np.uint8).reshape(shape)


def _read(folder: Path, source: str, name: str, *, dimensions: int) -> np.ndarray:
    path = _find(folder, source, name)
    if path is None:
        raise DataError(
            f"{folder}: expected {name} or {name}.gz there or in {_CLASSES[source]}/raw, found none"
        )
    return read_idx(path, dimensions=dimensions)


def _find(folder: Path, source: str, name: str) -> Path | None:
    places = (folder, folder / "raw", folder / _CLASSES[source] / "raw")
    candidates = [place / (name + suffix) for place in places for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _download(source: str, folder: Path) -> None:
    from torchvision import datasets

    print(f"downloading {source} to {folder}", file=sys.stderr, flush=True)
    try:
        getattr(datasets, _CLASSES[source])(root=folder, download=True)
    # torchvision raises URLError (an OSError) or RuntimeError when no mirror answers.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} could not be downloaded to {folder} ({reason}); "
            "give the folder that holds its idx files with --data"
        ) from error
