"""Listed pictures -> pixels, on every core: as arrays, or as rows decoded when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.pixels import decode_image, read_header
from training.picture_files import EncodedRows, ListedPart

_DIGEST_BYTES = 16
_CHUNK_ROWS = 64

# What is wrong with the rows that cannot be used.
Bad = dict[int, str]


class Pictures:
    """Rows that are decoded when asked for; indexed as an array uint8 [N, C, H, W] is.

    Without the pixels it is small, and is made to be sent to worker processes.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, spec: ImageInput, encoded: EncodedRows, rows: np.ndarray) -> None:
        """rows: int64 [N], numbers in `encoded`."""
        self.spec = spec
        self._encoded = encoded
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self), self.spec.channels, self.spec.height, self.spec.width)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """uint8 [n, C, H, W]; [C, H, W] for one number.

        Raises DataError naming the first picture that was good and is now damaged or gone.
        """
        wanted = self._rows[rows]
        pixels = np.empty((np.size(wanted), *self.spec.shape), dtype=np.uint8)
        for place, row in enumerate(np.atleast_1d(wanted)):
            try:
                pixels[place] = decode_image(self._encoded.read(row), self.spec)
            except DataError as error:
                raise DataError(f"{self._encoded.names[row]}: {error}") from error
        return pixels[0] if np.ndim(wanted) == 0 else pixels

    def select(self, rows: np.ndarray) -> Pictures:
        """Those of these rows, int64 [n], or where bool [N] is true."""
        return Pictures(self.spec, self._encoded, self._rows[rows])


@dataclass(frozen=True)
class LabelledPictures:
    """raw: uint8 [N, C, H, W]; labels: int64 [N], indices of classes; digests: S16 [N].

    names: what messages call a row. digests: blake2b's of each row's pixels, the same where the
    pixels are.
    """

    raw: np.ndarray | Pictures
    labels: np.ndarray
    names: Sequence[str]
    digests: np.ndarray


def read_headers(
    part: ListedPart, pool: ThreadPoolExecutor, bad: Bad
) -> set[tuple[tuple[int, int], bool]]:
    """The different headers of a part; rows without one are added to `bad`."""
    headers = set()

    def read(row: int) -> None:
        with part.encoded.open(row) as file:
            headers.add(read_header(file))

    _for_each_row(range(len(part.labels)), read, pool, bad)
    return headers


def decode_part(
    part: ListedPart, spec: ImageInput, pool: ThreadPoolExecutor, bad: Bad, in_memory: bool
) -> LabelledPictures:
    """The rows of a part that can be decoded; the others are added to `bad`."""
    rows = np.setdiff1d(np.arange(len(part.labels)), list(bad))
    digests = np.zeros(len(rows), dtype=f"S{_DIGEST_BYTES}")
    pixels = np.empty((len(rows) if in_memory else 0, *spec.shape), dtype=np.uint8)
    damaged: Bad = {}

    def decode(place: int) -> None:
        decoded = decode_image(part.encoded.read(rows[place]), spec)
        digests[place] = _digest(decoded)
        if in_memory:
            pixels[place] = decoded

    _for_each_row(range(len(rows)), decode, pool, damaged)
    bad.update({int(rows[place]): reason for place, reason in damaged.items()})
    good = np.setdiff1d(np.arange(len(rows)), list(damaged))
    if in_memory and damaged:
        # In place, forwards: a copy of all would take the memory twice.
        for start in range(0, len(good), _CHUNK_ROWS):
            some = good[start : start + _CHUNK_ROWS]
            pixels[start : start + len(some)] = pixels[some]
    rows, digests = rows[good], digests[good]
    raw = pixels[: len(rows)] if in_memory else Pictures(spec, part.encoded, rows)
    names = part.encoded.names
    names = names if len(rows) == len(names) else names.take(rows)
    return LabelledPictures(raw, part.labels[rows], names, digests)


def _for_each_row(
    rows: range, do: Callable[[int], None], pool: ThreadPoolExecutor, bad: Bad
) -> None:
    def do_some(some: range) -> Bad:
        failed = {}
        for row in some:
            try:
                do(row)
            except DataError as error:
                failed[row] = str(error)
        return failed

    chunks = (rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS))
    bad.update(chain.from_iterable(failed.items() for failed in pool.map(do_some, chunks)))


def digest_rows(pixels: np.ndarray) -> np.ndarray:
    """Of pictures, uint8 [N, C, H, W] and contiguous: S16 [N]."""
    return np.array([_digest(row) for row in pixels], dtype=f"S{_DIGEST_BYTES}")


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.data, digest_size=_DIGEST_BYTES).digest()
