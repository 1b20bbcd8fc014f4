"""From what a person types to a bundle's directory: a path, NAME@VERSION, or NAME."""

from __future__ import annotations

import os
from pathlib import Path

from artifacts.bundle import Bundle, read_bundle
from artifacts.errors import BundleError, nearest
from artifacts.files import write_file
from artifacts.shelves import MANIFEST, PROMOTED, list_bundles, promoted_version, store_path

__all__ = [
    "list_bundles",
    "only_name",
    "open_reference",
    "promote",
    "promoted_version",
    "resolve",
    "store_path",
]


def promote(store: Path, reference: str) -> None:
    """Make NAME stand for the version in NAME@VERSION, after verifying that bundle's files."""
    name, at, version = reference.partition("@")
    if not at:
        there = list_bundles(store).get(name, [])
        known = f"; there are: {', '.join(f'{name}@{each}' for each in there)}" if there else ""
        raise BundleError(
            f"{reference!r}: expected NAME@VERSION: promoting names one version{known}"
        )
    open_reference(store, reference)
    file = store / name / PROMOTED
    try:
        write_file(file, f"{version}\n".encode())
    except OSError as error:
        raise BundleError(f"{file}: could not be written: {error}") from error


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
        raise BundleError(f"no bundle named {name!r} in {store}; {_there_are(bundles, name)}")
    if at:
        if version not in bundles[name]:
            known = ", ".join(bundles[name])
            raise BundleError(
                f"{name!r} has no version {version!r}; there are: {known}"
                f"{nearest(version, bundles[name])}"
            )
        return store / name / version
    promoted = promoted_version(store, name)
    if promoted is None:
        raise BundleError(
            f"no version of {name!r} is promoted; there are: {', '.join(bundles[name])} "
            f"(`parityline promote {name}@{bundles[name][0]}`)"
        )
    if promoted not in bundles[name]:
        raise BundleError(
            f"the promoted version of {name!r}, {promoted}, is not in {store}; promote one that "
            f"is: `parityline promote {name}@{bundles[name][0]}`"
        )
    return store / name / promoted


def only_name(store: Path) -> str:
    """The store's one name. Raises BundleError listing the names when there is not just one."""
    bundles = list_bundles(store)
    if len(bundles) != 1:
        raise BundleError(
            f"expected one bundle name in {store}, or PARITYLINE_BUNDLE set; {_there_are(bundles)}"
        )
    return next(iter(bundles))


def _there_are(bundles: dict[str, list[str]], name: str = "") -> str:
    known = ", ".join(bundles) or "none: train one first, `parityline train digits`"
    return f"there are: {known}{nearest(name, bundles)}"
