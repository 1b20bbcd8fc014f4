"""Structs in Thrift's compact protocol, as the headers of Parquet's pages are.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

# What is more deeply nested is no header.
_DEEPEST = 4


def read_struct(data: bytes) -> tuple[dict[int, Any], int]:
    """Numbers, truths and structs of the struct at the start of data, by field; its length.

    What else there is in it, is passed, as None. Raises IndexError where data ends in it, KeyError
    or ValueError where it is none.
    """
    return _struct(data, 0, _DEEPEST)


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """An unsigned number, and where what follows begins. Raises IndexError at the end of data."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = read_varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    found: dict[int, Any] = {}
    field = 0
    while start := data[at]:
        at += 1
        if start >> 4:
            field += start >> 4
        else:
            field, at = _zigzag(data, at)
        found[field], at = _value(data, at, start & 0x0F, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 8:
        length, at = read_varint(data, at)
        if at + length > len(data):
            raise IndexError
        return None, at + length
    if kind == 12 and depth:
        return _struct(data, at, depth - 1)
    # No header has such a one.
    raise KeyError(kind)
