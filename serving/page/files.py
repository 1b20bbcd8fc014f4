"""The page's own files, as they are served, and the headers that keep the page to them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_COMMON = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Nothing from elsewhere, no inline script or style, no frame around it; pictures that were chosen
# or drawn are blobs.
PAGE_HEADERS = {
    **_COMMON,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    # Without a token another one is answered, and not to every caller.
    "Vary": "Accept, Authorization",
}
# It is one file: its style is inside, and it has no script.
REPORT_HEADERS = {
    **_COMMON,
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
# Of the page that becomes it, once there is a token.
REPORT_SIGN_IN_HEADERS = {
    **PAGE_HEADERS,
    "Content-Security-Policy": PAGE_HEADERS["Content-Security-Policy"].replace(
        "style-src 'self'", "style-src 'self' 'unsafe-inline'"
    ),
}
EXAMPLE_HEADERS = {
    **_COMMON,
    # Its path names the version, whose rows never change.
    "Cache-Control": "private, max-age=31536000, immutable",
}


@dataclass(frozen=True)
class StaticFile:
    """One file: its bytes and its headers, ETag among them."""

    content: bytes
    headers: dict[str, str]


@cache
def static_files() -> dict[str, StaticFile]:
    """Those that a browser may ask for, by name; read once."""
    return {
        path.name: StaticFile(
            content := path.read_bytes(),
            {
                **_COMMON,
                "Content-Type": _TYPES[path.suffix],
                "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
                # Asked for anew each time, and sent again only when it has changed.
                "Cache-Control": "no-cache",
            },
        )
        for path in sorted(STATIC.iterdir())
        if path.suffix in _TYPES
    }


@cache
def template(name: str) -> str:
    """An HTML template's text."""
    return (STATIC / name).read_text(encoding="utf-8")
