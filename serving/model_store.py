"""Bundles in and out of BentoML's model store: plain files, no pickle.

A pushed model holds, beside BentoML's `model.yaml`, a folder `store` laid out as Parityline's own
store, with the one bundle in it. What is pulled is data from elsewhere: every digest is checked
before it appears, and BentoML's pickled `custom_objects` are refused, never loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cattrs
import yaml  # type: ignore[import-untyped]
from bentoml import Model, Tag, models
from bentoml.exceptions import BentoMLException

from artifacts import open_bundle
from artifacts.bundle import Bundle, copy_bundle
from artifacts.errors import BundleError, DataError
from artifacts.manifest import Manifest
from artifacts.references import list_bundles, open_reference
from artifacts.references import promote as promote_bundle

_STORE = "store"
_EXPECTED = {"model.yaml", _STORE}
_PICKLE = "custom_objects.pkl"
# What reading a model.yaml from elsewhere raises.
_UNREADABLE = (
    BentoMLException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError,
    cattrs.BaseValidationError,
)  # fmt: skip


def push(bundle: Bundle, tag: str | None = None) -> tuple[str, bool]:
    """Copy a verified bundle into BentoML's model store; its tag, and whether it is new there.

    tag: NAME:VERSION, by default the bundle's own.
    Raises DataError for a tag that BentoML does not take, BundleError where something else, or
    something damaged, has that tag.
    """
    manifest = bundle.manifest
    wanted = _parse(tag or f"{manifest.name.lower()}:{manifest.version}")
    if wanted.version in {None, "latest"}:
        raise DataError(f"{tag!r}: expected NAME:VERSION, found no version")
    model = _find(wanted)
    if model is not None:
        found = _open(model).manifest
        if found.content_sha256 != manifest.content_sha256:
            raise BundleError(
                f"{wanted}: expected {manifest.reference} or nothing there, found "
                f"{found.reference}: choose another tag"
            )
        return str(wanted), False
    try:
        # BentoML makes it in a temporary folder, and copies that to the store at the end.
        with models.create(
            wanted,
            labels={"project": "parityline", "task": manifest.task},
            metadata=_metadata(manifest),
        ) as model:
            copy_bundle(bundle, Path(model.path) / _STORE)
    except (BentoMLException, OSError) as error:
        raise BundleError(f"{wanted}: could not be pushed: {error}") from error
    return str(wanted), True


def pull(tag: str, store: Path, *, promote: bool = False) -> Bundle:
    """Copy the bundle of a pushed model into a Parityline store, byte for byte.

    tag: NAME:VERSION, or NAME for the one that was pushed last.
    promote: make its name stand for it, after replaying its golden rows.
    Raises DataError for what is no tag, BundleError for a model that is not there, was not
    pushed by `push`, or was changed since.
    """
    wanted = _parse(tag)
    model = _find(wanted)
    if model is None:
        raise BundleError(f"no model {wanted} in BentoML's store: `bentoml models list`")
    bundle = copy_bundle(_open(model), store)
    if promote:
        open_bundle(str(bundle.path.resolve()), device="cpu")
        promote_bundle(store, bundle.manifest.reference)
    return bundle


def _parse(tag: str) -> Tag:
    try:
        return Tag.from_str(tag)
    except (BentoMLException, ValueError) as error:
        raise DataError(f"{tag!r}: expected a tag NAME:VERSION: {error}") from error


def _find(tag: Tag) -> Model | None:
    """The stored model of just this tag. BentoML's own look-up completes a shortened version."""
    try:
        if tag.version in {None, "latest"}:
            return models.get(tag) if models.list(tag.name) else None
        return next(iter(models.list(tag)), None)
    except BentoMLException as error:
        if "no Models with name" in str(error):
            return None
        raise BundleError(f"{tag}: not a whole model, delete it: {error}") from error
    except _UNREADABLE as error:
        raise BundleError(f"{tag}: its model.yaml cannot be read: {error}") from error


def _open(model: Model) -> Bundle:
    """The bundle in a model, every file of it verified."""
    folder = Path(model.path)
    found = {entry.name for entry in folder.iterdir()}
    if _PICKLE in found:
        raise BundleError(f"{model.tag}: holds {_PICKLE}, which is never loaded: refused")
    bundles = list_bundles(folder / _STORE)
    references = [f"{name}@{version}" for name, of in bundles.items() for version in of]
    if found != _EXPECTED or len(references) != 1:
        raise BundleError(
            f"{model.tag}: expected a model that `parityline push` made, with one bundle, found "
            f"{', '.join(sorted(found))} and {len(references)} bundles"
        )
    return open_reference(folder / _STORE, references[0])


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """What `bentoml models get` shows."""
    tested = manifest.metrics.get("test")
    return {
        "bundle": manifest.reference,
        "schema_version": manifest.schema_version,
        "content_sha256": manifest.content_sha256,
        "task": manifest.task,
        "labels": list(manifest.labels),
        "accuracy": tested.accuracy.model_dump() if tested else None,
    }
