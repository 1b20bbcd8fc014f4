"""Labelled pictures in .npz files of pixels; labels in arrays -> indices of classes."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.errors import DataError
from training.picture_files import Names

_ARRAYS = ("x", "y", "labels", "x_test", "y_test")


@dataclass(frozen=True)
class PixelPart:
    """pixels: uint8 [N, C, H, W]; labels: int64 [N], indices of classes."""

    pixels: np.ndarray
    labels: np.ndarray
    names: Names


def read_npz(path: Path) -> tuple[tuple[str, ...], dict[str, PixelPart]]:
    """Class names and pixels of an .npz file: x, y, and where given labels, x_test, y_test.

    x: uint8 [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]; y: [N], integers or strings.
    Raises DataError for anything else.
    """
    arrays = _read_arrays(path)
    pixels, values, names = {}, {}, {}
    for part, suffix in (("train", ""), ("test", "_test")):
        x, y = f"x{suffix}", f"y{suffix}"
        if x not in arrays:
            continue
        # Taken out: once its copy is in order, the array as it was read is gone.
        pixels[part] = _channels_first(arrays.pop(x), f"{path.name}: {x}")
        values[part] = _label_values(arrays[y], f"{path.name}: {y}")
        if len(pixels[part]) != len(values[part]):
            raise DataError(
                f"{path.name}: {len(pixels[part])} pictures in {x} but "
                f"{len(values[part])} labels in {y}"
            )
        place = f"{path.name} {x}" if suffix else path.name
        names[part] = Names(row_names(place, 0, len(values[part])))
    if len({array.shape[1:] for array in pixels.values()}) > 1:
        raise DataError(
            f"{path.name}: x holds pictures of {list(pixels['train'].shape[1:])}, "
            f"x_test of {list(pixels['test'].shape[1:])}"
        )
    given = None
    if "labels" in arrays:
        listed = arrays["labels"]
        if listed.ndim != 1 or listed.dtype.kind != "U":
            raise DataError(
                f"{path.name}: labels: expected a list of names, "
                f"found {listed.dtype} {list(listed.shape)}"
            )
        given = tuple(listed.tolist())
    classes, indices = index_labels(values, given, names)
    return classes, {part: PixelPart(pixels[part], indices[part], names[part]) for part in pixels}


def index_labels(
    values: Mapping[str, np.ndarray], given: tuple[str, ...] | None, names: Mapping[str, Names]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and each part's labels as their indices, int64 [N].

    values: by part, [N] integers or strings. given: the class names where the data says them;
    otherwise they are what train holds, sorted. Raises DataError naming the first row whose
    label is none of them, or what is wrong with the classes.
    """
    numbers = values["train"].dtype.kind in "iu"
    if given is None:
        classes = np.unique(values["train"])
        if numbers and classes[0] < 0:
            row = int(np.argmin(values["train"]))
            raise DataError(f"{names['train'][row]}: label: expected 0 or more, found {classes[0]}")
        given = tuple(str(value) for value in classes.tolist())
    else:
        classes = np.arange(len(given)) if numbers else np.array(given)
    if len(given) < 2 or len(set(given)) != len(given):
        raise DataError(f"expected at least two classes, each once, found {list(given)}")
    order = np.argsort(classes)
    indices = {}
    for part, labels in values.items():
        if (labels.dtype.kind in "iu") != numbers:
            raise DataError(f"{part}: expected labels of the same type as in train")
        places = np.searchsorted(classes[order], labels)
        at = order[np.minimum(places, len(order) - 1)]
        wrong = np.flatnonzero(classes[at] != labels)
        if len(wrong):
            row = int(wrong[0])
            ends = f"{classes[order[0]]} to {classes[order[-1]]}"
            raise DataError(
                f"{names[part][row]}: label: expected one of {len(given)} classes ({ends}), "
                f"found {labels[row]} (labels out of range: {len(wrong)})"
            )
        indices[part] = at.astype(np.int64)
    return given, indices


def row_names(place: str, start: int, stop: int) -> pa.Array:
    """ "PLACE row START" and so on, as binary [stop - start]."""
    numbers = pa.array(range(start, stop), pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(f"{place} row", numbers, " ").cast(pa.binary())


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: NumPy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = archive.files
            if not {"x", "y"} <= set(found) <= set(_ARRAYS):
                raise DataError(
                    f"{path.name}: expected the arrays x and y, and of labels, x_test and y_test "
                    f"those that there are, found {found}"
                )
            if ("x_test" in found) != ("y_test" in found):
                raise DataError(f"{path.name}: expected x_test and y_test or neither")
            return {name: archive[name] for name in found}
    except DataError:
        raise
    except (
        OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DataError(f"{path.name}: not an .npz file of plain arrays: {error}") from error


def _channels_first(array: np.ndarray, place: str) -> np.ndarray:
    """uint8 [N, C, H, W], contiguous."""
    if array.dtype != np.uint8:
        raise DataError(f"{place}: expected uint8 (0 to 255, not scaled), found {array.dtype}")
    first = array.ndim == 4 and array.shape[1] in (1, 3)
    last = array.ndim == 4 and array.shape[3] in (1, 3)
    if array.size and first and last:
        raise DataError(f"{place}: {list(array.shape)} may be [N, C, H, W] or [N, H, W, C]")
    if not array.size or not (array.ndim == 3 or first or last):
        raise DataError(
            f"{place}: expected shape [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W], "
            f"found {list(array.shape)}"
        )
    if array.ndim == 3:
        array = array[:, np.newaxis]
    elif last:
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)


def _label_values(array: np.ndarray, place: str) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(
            f"{place}: expected integers or strings, one a picture, "
            f"found {array.dtype} {list(array.shape)}"
        )
    return array
