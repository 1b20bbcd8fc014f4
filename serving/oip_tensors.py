"""Tensors of the Open Inference Protocol: JSON or bytes -> cells, texts -> bytes.

Knows datatypes and shapes, no model. What cannot be read is a DataError that starts with the place
in the tensor's `data`. Nothing here costs more than linear time and memory in what was received.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from artifacts.errors import DataError

Bytes = bytes | bytearray | memoryview
FLOATS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2"}
INTEGERS = {
    f"{kind}{8 * size}": f"<{kind[0].lower()}{size}"
    for kind in ("INT", "UINT")
    for size in (1, 2, 4, 8)
}
# numpy has no bfloat16: its two bytes are the upper half of a float32.
_DTYPES = {
    name: np.dtype(code)
    for name, code in {**FLOATS, **INTEGERS, "BF16": "<u2", "BOOL": "?"}.items()
}
NUMBERS = frozenset({*FLOATS, *INTEGERS, "BF16"})
DATATYPES = NUMBERS | {"BOOL", "BYTES"}

_MOST_UINT64 = 2**64 - 1
_LENGTH = struct.Struct("<I")
_NESTED = re.compile(rb"\s*\[\s*\[")


def item_size(datatype: str) -> int | None:
    """Bytes of one element as binary data; None for BYTES, whose elements say their own."""
    return None if datatype == "BYTES" else _DTYPES[datatype].itemsize


def read_binary(
    datatype: str, body: Bytes, start: int, size: int, count: int
) -> np.ndarray | list[str]:
    """`count` elements of body[start : start + size], row-major.

    size: count * item_size(datatype), or for BYTES any that lies in the body.
    Returns an array of the datatype (float32 for BF16), mostly the body's own memory, or texts for
    BYTES.
    """
    if datatype == "BYTES":
        return _read_texts(body, start, start + size, count)
    array = np.frombuffer(body, _DTYPES[datatype], count, start)
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    # A byte that is neither 0 nor 1 is no bool, and numpy would take it for one.
    if datatype == "BOOL" and array.view(np.uint8).max() > 1:
        raise DataError("data: expected bytes 0 or 1 for BOOL, found others")
    return array


def _read_texts(body: Bytes, start: int, stop: int, count: int) -> list[str]:
    texts: list[str] = []
    unpack, prefix = _LENGTH.unpack_from, _LENGTH.size
    for index in range(count):
        begin = start + prefix
        if begin > stop:
            raise DataError(f"data[{index}]: expected {count} elements, found {index}")
        end = begin + unpack(body, start)[0]
        if end > stop:
            raise DataError(
                f"data[{index}]: expected {end - begin} bytes, as its length says, "
                f"found {stop - begin}"
            )
        try:
            texts.append(str(body[begin:end], "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"data[{index}]: not UTF-8: {error}") from error
        start = end
    if start != stop:
        raise DataError(f"data: {stop - start} bytes more than its {count} elements")
    return texts


def read_json(
    datatype: str, data: msgspec.Raw, shape: Sequence[int], *, nullable: bool
) -> list[Any]:
    """JSON elements, nested as `shape` says or flat; row-major, as Python's numbers and texts.

    A float is not rounded to its datatype yet. None for null, where `nullable`.
    """
    if datatype == "BF16":
        raise DataError("data: expected binary data for BF16, found JSON")
    depth = len(shape) if _NESTED.match(data) else 1
    try:
        elements: list[Any] = _decoder(datatype, depth, nullable).decode(data)
    except msgspec.ValidationError as error:
        raise DataError(explain(error, "data")) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"data: not JSON: {error}") from error
    sizes = shape if depth > 1 else [math.prod(shape)]
    _check_length(elements, sizes[0])
    for size in sizes[1:]:
        for nested in elements:
            _check_length(nested, size)
        elements = list(chain.from_iterable(elements))
    if datatype == "UINT64" and max(filter(None, elements), default=0) > _MOST_UINT64:
        raise DataError(f"data: expected at most {_MOST_UINT64} for UINT64, found more")
    return elements


def _check_length(elements: list[Any], size: int) -> None:
    if len(elements) != size:
        raise DataError(f"data: expected {size} elements for its shape, found {len(elements)}")


@cache
def _decoder(datatype: str, depth: int, nullable: bool) -> msgspec.json.Decoder[Any]:
    element: Any = {"BOOL": bool, "BYTES": str}.get(datatype, float)
    if datatype in INTEGERS:
        bounds = np.iinfo(INTEGERS[datatype])
        # msgspec knows no bound above int64's; `read_json` looks at it.
        most = None if datatype == "UINT64" else int(bounds.max)
        element = Annotated[int, msgspec.Meta(ge=int(bounds.min), le=most)]
    if nullable:
        element = element | None
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def explain(error: msgspec.ValidationError, where: str) -> str:
    """msgspec's message behind its place: "where[3]: expected `int`, got `str`"."""
    text, _, place = str(error).rpartition(" - at `$")
    if not text:
        text, place = place, ""
    return f"{where}{place.rstrip('`')}: {text[0].lower()}{text[1:]}"


def as_element(text: str) -> bytes:
    """One element of a BYTES tensor as binary data: 4 bytes of length, little-endian, and UTF-8."""
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def as_floats(elements: list[Any], datatype: str) -> np.ndarray:
    """JSON numbers as an array of a float datatype, NaN for None; infinity beyond its range."""
    if datatype == "FP64":
        return np.array(elements, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.array(elements, dtype=FLOATS[datatype])
