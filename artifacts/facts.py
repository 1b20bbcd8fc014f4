"""What `--json` says of bundles: documents whose keys stay, with numbers as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.bundle import Bundle, read_manifest
from artifacts.errors import BundleError
from artifacts.references import list_bundles, promoted_version
from artifacts.summary import describe_input

if TYPE_CHECKING:
    from artifacts.predictor import Predictor


def list_facts(store: Path) -> list[dict[str, Any]]:
    """Each version in the store, newest first within a name.

    name, version, reference (NAME@VERSION), promoted, path; created, task, labels (how many),
    input (in words) and test (rows, and each figure with value, low, high: accuracy, log_loss,
    auc, average_precision, None where there is none). Of one that cannot be read these are left
    out, and error says why.
    """
    found = []
    for name, versions in list_bundles(store).items():
        promoted = promoted_version(store, name)
        for version in versions:
            path = store / name / version
            entry: dict[str, Any] = {
                "name": name,
                "version": version,
                "reference": f"{name}@{version}",
                "promoted": version == promoted,
                "path": str(path.absolute()),
            }
            try:
                manifest = read_manifest(path)
            except BundleError as error:
                found.append({**entry, "error": str(error)})
                continue
            test = manifest.metrics.get("test")
            figures = {"rows", "accuracy", "log_loss", "auc", "average_precision"}
            found.append({
                **entry,
                "created": manifest.created,
                "task": manifest.task,
                "labels": len(manifest.labels),
                "input": describe_input(manifest.input),
                "test": None if test is None else test.model_dump(mode="json", include=figures),
            })  # fmt: skip
    return found


def bundle_facts(bundle: Bundle, store: Path) -> dict[str, Any]:
    """reference, path, promoted (whether NAME stands for it), and all that the manifest says."""
    manifest = bundle.manifest
    return {
        "reference": manifest.reference,
        "path": str(bundle.path.absolute()),
        "promoted": promoted_version(store, manifest.name) == manifest.version,
        **manifest.model_dump(mode="json"),
    }


def verify_facts(predictor: Predictor) -> dict[str, Any]:
    """What was checked of an opened bundle, and how near its answers are to those at release."""
    return {
        "reference": predictor.manifest.reference,
        "path": str(predictor.bundle.path.absolute()),
        "backend": predictor.backend,
        "device": predictor.device,
        "files": len(predictor.manifest.files),
        "golden_rows": predictor.checked.rows,
        "max_abs_diff": predictor.checked.max_abs_diff,
        "label_disagreements": predictor.checked.label_disagreements,
    }
