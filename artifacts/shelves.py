"""What lies in a store, by its names alone: no bundle is opened, nothing heavy is imported.

A store is `NAME/VERSION/` for each bundle, and a file `NAME/promoted` that holds the version that
NAME alone stands for. It is `$PARITYLINE_STORE`, by default `artifacts/store` under the working
directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from artifacts.errors import BundleError

MANIFEST = "manifest.json"
PROMOTED = "promoted"
VERSION_LENGTH = 12
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_LENGTH}}}")


def store_path() -> Path:
    """Where bundles are kept."""
    return Path(os.environ.get("PARITYLINE_STORE") or "artifacts/store")


def list_bundles(store: Path) -> dict[str, list[str]]:
    """Names and their versions, newest first. A bundle without a manifest is not listed."""
    names: dict[str, list[str]] = {}
    if store.exists() and not store.is_dir():
        raise BundleError(
            f"{store}: expected the store, a directory; found a file; see $PARITYLINE_STORE"
        )
    for shelf in sorted(store.iterdir()) if store.is_dir() else []:
        if not shelf.is_dir() or not re.match(NAME_PATTERN, shelf.name):
            continue
        versions = [
            entry
            for entry in shelf.iterdir()
            if _VERSION.fullmatch(entry.name) and (entry / MANIFEST).is_file()
        ]
        versions.sort(key=lambda entry: (entry.stat().st_mtime_ns, entry.name), reverse=True)
        if versions:
            names[shelf.name] = [entry.name for entry in versions]
    return names


def promoted_version(store: Path, name: str) -> str | None:
    """The version that NAME alone stands for, or None."""
    file = store / name / PROMOTED
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{file}: expected a version, cannot be read: {error}; "
            f"`parityline promote {name}@VERSION` writes it anew"
        ) from error
