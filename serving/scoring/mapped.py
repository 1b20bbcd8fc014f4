"""A local file whose bytes are used where they lie in the page cache, without a copy."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

# Linux 5.14's, which Python has no name for: pages are there before they are touched, and what
# cannot be read is an error then, not a signal later.
_POPULATE_READ = 22
# Of less than that, mapping takes longer than reading.
_LEAST_BYTES = 2**16
# Mapped at once of what will be read.
_AHEAD_BYTES = 2**23


class MappedFile:
    """As a binary file: `read` gives bytes, or a read-only view of the file where it is large.

    A view is unmapped when it is let go, so that memory holds what is in use. Whoever cuts the file
    off while a view is looked at ends this process (SIGBUS); cut off before, a read is short.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._position = 0
        # What is mapped already, and where it begins; up to where it may be read ahead.
        self._window, self._begins = memoryview(b""), 0
        self._stop = 0

    def read_ahead(self, stop: int) -> None:
        """What lies before this position will be read, piece by piece."""
        self._stop = stop

    def read(self, size: int) -> bytes | memoryview:
        """The next `size` bytes, fewer at the file's end. Raises OSError."""
        start = self._position
        inside = start - self._begins
        if not 0 <= inside <= inside + size <= len(self._window):
            # What a damaged header asks for may be more than there is memory.
            left = os.fstat(self._file.fileno()).st_size - start
            size = max(0, min(size, left))
            more = max(size, min(_AHEAD_BYTES, self._stop - start, left))
            if more < _LEAST_BYTES or not self._map(start, more):
                self._file.seek(start)
                data = b"".join(self._copied(size))
                self._position = start + len(data)
                return data
            inside = 0
        self._position = start + size
        return self._window[inside : inside + size]

    def _map(self, start: int, size: int) -> bool:
        """Whether it could be; else it is to be read as usual."""
        mapped = self._mapped(start, size)
        if mapped is None:
            return False
        self._window, self._begins = mapped, start
        return True

    def _mapped(self, start: int, size: int) -> memoryview | None:
        """None where it is to be read as usual, or cannot be."""
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(
                self._file.fileno(), before + size, access=mmap.ACCESS_READ, offset=start - before
            )
        except (ValueError, OSError):
            return None
        try:
            mapping.madvise(_POPULATE_READ)
        except OSError as error:
            # An older kernel knows no such advice.
            if error.errno != errno.EINVAL:
                return None
        return memoryview(mapping)[before:]

    def _copied(self, size: int) -> Iterator[bytes]:
        while size and (data := self._file.read(size)):
            yield data
            size -= len(data)

    def seek(self, position: int) -> int:
        """From the file's start."""
        self._position = position
        return position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def close(self) -> None:
        """Views that are in use stay."""
        self._window = memoryview(b"")
        self._file.close()
