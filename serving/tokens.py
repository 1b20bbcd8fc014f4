"""Bearer tokens, one a line of a file; a line that begins with # is a comment."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from artifacts.errors import DataError

_log = logging.getLogger("bentoml.parityline")

_SHORTEST = 16


class Tokens:
    """The tokens in a file, read again when it has changed."""

    def __init__(self, file: Path) -> None:
        """Raises DataError for a file that cannot be read, is empty, or has a short token."""
        self._file = file
        self._digests, self._stamp = _read(file)

    def accept(self, authorization: bytes) -> bool:
        """Whether a request's Authorization header bears one of the tokens.

        Each is compared in constant time, by digests of equal length.
        """
        scheme, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(known)

    def refresh(self) -> None:
        """Read the file again if it has changed; where that fails, the tokens stay."""
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        # Also of what cannot be read: once is enough to say so.
        self._stamp = stamp
        try:
            self._digests, self._stamp = _read(self._file)
            _log.info("tokens: %d read from %s", len(self._digests), self._file)
        except DataError as error:
            _log.error("tokens: still those of before: %s", error)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> tuple[list[bytes], tuple[int, int, int] | None]:
    try:
        stamp = _stamp(file)
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a file of tokens, cannot be read: {error}") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    short = [number for number, line in enumerate(tokens, 1) if len(line) < _SHORTEST]
    if not tokens or short:
        found = f"token {short[0]} is shorter" if short else "none"
        raise DataError(
            f"{file}: expected tokens of at least {_SHORTEST} characters, one a line, found {found}"
        )
    return [hashlib.sha256(token.encode()).digest() for token in tokens], stamp
