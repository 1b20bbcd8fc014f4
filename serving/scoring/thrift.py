"""Structs in Thrift's compact protocol, as Parquet's footer and the headers of its pages are.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRUE, _FALSE, _I16, I32, I64, BINARY, LIST, STRUCT = 1, 2, 4, 5, 6, 8, 9, 12
# What is more deeply nested is no header.
_DEEPEST = 4

# By the number of a field its kind and value; a list's value is a kind, and values of it.
Fields = Mapping[int, tuple[int, Any]]


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
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in (_I16, I32, I64):
        return _zigzag(data, at)
    if kind == BINARY:
        length, at = read_varint(data, at)
        if at + length > len(data):
            raise IndexError
        return None, at + length
    if kind == STRUCT and depth:
        return _struct(data, at, depth - 1)
    # No header has such a one.
    raise KeyError(kind)


def write_struct(fields: Fields) -> bytes:
    """A struct's bytes; its fields are in order, and at most 15 apart."""
    written = bytearray()
    last = 0
    for field, (kind, value) in fields.items():
        written.append((field - last) << 4 | kind)
        written += _written(kind, value)
        last = field
    written.append(0)
    return bytes(written)


def _written(kind: int, value: Any) -> bytes:
    if kind == STRUCT:
        return write_struct(value)
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == LIST:
        of, values = value
        # Of fewer than 15.
        return bytes([len(values) << 4 | of]) + b"".join(_written(of, one) for one in values)
    return _varint(value << 1 if value >= 0 else ~(value << 1))


def _varint(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
