"""Bundles with other content and digests that fit it: what a careful forger makes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from artifacts.bundle import Bundle, write_bundle


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in bundle.manifest.files}


def forge(bundle: Bundle, store: Path, **changes: bytes) -> Bundle:
    """A bundle with other files and digests that fit them: what a careful forger makes."""
    files = {**files_of(bundle), **{name.replace("_", "."): data for name, data in changes.items()}}
    return write_bundle(store, bundle.manifest, files)


def rewritten(payload: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with each entry's content changed."""
    output = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(payload)) as source,
        zipfile.ZipFile(output, "w") as target,
    ):
        for entry in source.infolist():
            name = entry.filename
            target.writestr(zipfile.ZipInfo(name), change(name, source.read(entry)))
    return output.getvalue()
