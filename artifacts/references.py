"""From what a person types to a bundle's directory: a path, NAME@VERSION, or NAME.

The store is `$PARITYLINE_STORE`, by default `artifacts/store` under the working directory:
`NAME/VERSION/` for each bundle, and a file `NAME/promoted` that holds the version that NAME alone
stands for.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from artifacts.bundle import MANIFEST, Bundle, read_bundle, sync_directory
from artifacts.errors import BundleError
from artifacts.manifest import NAME_PATTERN, VERSION_LENGTH

PROMOTED = "promoted"
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_LENGTH}}}")


def store_path() -> Path:
    """Where bundles are kept."""
    return Path(os.environ.get("PARITYLINE_STORE") or "artifacts/store")


def list_bundles(store: Path) -> dict[str, list[str]]:
    """Names and their versions, newest first. A bundle without a manifest is not listed."""
    names: dict[str, list[str]] = {}
    if store.exists() and not store.is_dir():
        raise BundleError(f"{store}: expected the store, a directory; found a file")
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
        raise BundleError(f"{file}: expected a version, cannot be read: {error}") from error


def promote(store: Path, reference: str) -> None:
    """Make NAME stand for the version in NAME@VERSION, after verifying that bundle's files."""
    name, at, version = reference.partition("@")
    if not at:
        raise BundleError(f"{reference!r}: expected NAME@VERSION: promoting names one version")
    open_reference(store, reference)
    shelf = store / name
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=shelf, prefix=".promoted-", delete=False) as file:
            temporary = Path(file.name)
            file.write(version + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(shelf / PROMOTED)
        sync_directory(shelf)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise BundleError(f"{shelf / PROMOTED}: could not be written: {error}") from error


def open_reference(store: Path, reference: str) -> Bundle:
    """The verified bundle that a reference names.

    Raises BundleError, also when the directory of a NAME or VERSION holds another bundle.
    """
    path = resolve(store, reference)
    bundle = read_bundle(path)
    by_name = path.parent.parent == store and os.sep not in reference
    if by_name and bundle.manifest.reference != f"{path.parent.name}@{path.name}":
        raise BundleError(f"{path}: expected this bundle there, found {bundle.manifest.reference}")
    return bundle


def resolve(store: Path, reference: str) -> Path:
    """The directory of a bundle. Raises BundleError with what there is to choose from."""
    if os.sep in reference or reference in {".", ".."}:
        return Path(reference)
    name, at, version = reference.partition("@")
    bundles = list_bundles(store)
    if name not in bundles:
        if not at and (Path(reference) / MANIFEST).is_file():
            return Path(reference)
        known = ", ".join(bundles) or "none: train one first, `parityline train digits`"
        raise BundleError(f"no bundle named {name!r} in {store}; there are: {known}")
    if at:
        if version not in bundles[name]:
            raise BundleError(
                f"{name!r} has no version {version!r}; there are: {', '.join(bundles[name])}"
            )
        return store / name / version
    promoted = promoted_version(store, name)
    if promoted is None:
        raise BundleError(
            f"no version of {name!r} is promoted; there are: {', '.join(bundles[name])} "
            f"(`parityline promote {name}@{bundles[name][0]}`)"
        )
    if promoted not in bundles[name]:
        raise BundleError(f"the promoted version of {name!r}, {promoted}, is not in {store}")
    return store / name / promoted


def only_name(store: Path) -> str:
    """The store's one name. Raises BundleError listing the names when there is not just one."""
    bundles = list_bundles(store)
    if len(bundles) != 1:
        known = ", ".join(bundles) or "none: train one first, `parityline train digits`"
        raise BundleError(
            f"expected one bundle name in {store}, or PARITYLINE_BUNDLE set; there are: {known}"
        )
    return next(iter(bundles))
