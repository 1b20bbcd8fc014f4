"""CIFAR-10: in a folder as Parquet or as torchvision keeps it, or downloaded by torchvision.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from training.idx import DOWNLOAD_FOLDER
from training.picture_arrays import row_names
from training.picture_files import Names
from training.picture_rows import LabelledPictures, digest_rows
from training.pictures import PictureSet, load_pictures

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_BATCHES = "cifar-10-batches-py"
_SPEC = ImageInput(channels=3, height=32, width=32)


def load_cifar10(
    folder: Path | None, *, memory_bytes: int, threads: int | None = None
) -> PictureSet:
    """Its 50,000 pictures as "train" and 10,000 as "test".

    folder: holds train and test Parquet files, or torchvision's cifar-10-batches-py, which is
    always read into memory; None takes data/cifar10 and downloads what is not there.
    memory_bytes, threads: as in `load_pictures`. Raises DataError.
    """
    download = folder is None
    folder = DOWNLOAD_FOLDER / "cifar10" if folder is None else folder
    if not download and not folder.is_dir():
        raise DataError(f"data folder {folder}: expected a directory, found none")
    if any(folder.glob("*.parquet")):
        loaded = load_pictures(
            folder,
            size=None,
            channels=None,
            fit=_SPEC.fit,
            interpolation=_SPEC.interpolation,
            skip_bad=False,
            memory_bytes=memory_bytes,
            threads=threads,
        )
        loaded = dataclasses.replace(loaded, source="cifar10")
    elif download or (folder / _BATCHES).is_dir():
        loaded = _from_torchvision(folder, download)
    else:
        raise DataError(f"{folder}: expected .parquet files or a folder {_BATCHES}, found neither")
    if loaded.labels == tuple(str(index) for index in range(len(CLASSES))):
        loaded = dataclasses.replace(loaded, labels=CLASSES)
    if loaded.input != _SPEC or loaded.labels != CLASSES or set(loaded.parts) != {"train", "test"}:
        raise DataError(
            f"{folder}: expected CIFAR-10's classes in 3 x 32 x 32, in train and test, found "
            f"{list(loaded.labels[:10])} in {' x '.join(map(str, loaded.input.shape))}, "
            f"in {' and '.join(loaded.parts)}"
        )
    return loaded


def _from_torchvision(folder: Path, download: bool) -> PictureSet:
    # Its batches are pickles: it compares their MD5 sums before it reads them.
    from torchvision.datasets import CIFAR10

    parts = {}
    try:
        if download and not (folder / _BATCHES).is_dir():
            print(f"downloading cifar10 to {folder}", file=sys.stderr, flush=True)
        for name in ("train", "test"):
            batches = CIFAR10(root=folder, train=name == "train", download=download)
            raw = np.ascontiguousarray(batches.data.transpose(0, 3, 1, 2))
            labels = np.array(batches.targets, dtype=np.int64)
            names = Names(row_names(name, 0, len(labels)))
            parts[name] = LabelledPictures(raw, labels, names, digest_rows(raw))
    # torchvision raises URLError (an OSError) or RuntimeError: no network, or other bytes.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        what = "could not be downloaded to" if download else "could not be read from"
        raise DataError(
            f"cifar10 {what} {folder} ({reason}); give the folder that holds its Parquet files "
            f"or {_BATCHES} with --data"
        ) from error
    return PictureSet("cifar10", _SPEC, CLASSES, parts, ())
