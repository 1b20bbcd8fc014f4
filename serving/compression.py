"""Compressed bodies: gzip and deflate, inflated no further than a limit."""

from __future__ import annotations

import gzip
import re
import zlib

from starlette.exceptions import HTTPException

from artifacts.errors import DataError

# Window bits for zlib: 32 more tells gzip and zlib apart by the header.
_EITHER = 32 + zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS
# Below this a body is as quickly sent as it is compressed.
_SMALLEST = 1024
# "gzip;q=0": anything but this.
_REFUSED = re.compile(rb";\s*q=0(\.0*)?\s*$")


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body that a Content-Encoding stands for.

    Raises HTTPException 415 for an encoding other than gzip and deflate, 413 for more than
    max_bytes, DataError for damage.
    """
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise HTTPException(
            415, f"content-encoding: expected gzip, deflate or identity, found {encoding!r}"
        )
    try:
        return _inflated(body, _EITHER, max_bytes)
    except zlib.error as error:
        # "deflate" is zlib by the standard, and bare deflate by what many send.
        if encoding == "deflate":
            try:
                return _inflated(body, _RAW, max_bytes)
            except zlib.error:
                pass
        raise DataError(f"the body is not {encoding}, or damaged: {error}") from error


def compress(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """The body and its encoding, by an Accept-Encoding; None: as it is."""
    if len(body) < _SMALLEST:
        return body, None
    parts = [part for part in accepted.split(b",") if not _REFUSED.search(part)]
    names = [part.split(b";")[0].strip().lower() for part in parts]
    if b"gzip" in names:
        return gzip.compress(body, compresslevel=1, mtime=0), b"gzip"
    if b"deflate" in names:
        return zlib.compress(body, level=1), b"deflate"
    return body, None


def _inflated(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(window_bits)
    # One more than may come: at the limit itself input may be left though no output is.
    result = inflater.decompress(body, max_bytes + 1)
    if len(result) > max_bytes:
        raise HTTPException(
            413, f"the body: expected at most {max_bytes} bytes inflated, found more"
        )
    if not inflater.eof:
        raise DataError("the body is cut short")
    if inflater.unused_data:
        raise DataError("the body: expected nothing after its compressed part, found bytes")
    return result
