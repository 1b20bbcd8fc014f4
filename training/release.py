"""A fitted network to a released bundle: metrics, export, gate, golden rows, report, release."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from artifacts.backends import Model, run_module
from artifacts.bundle import Bundle, Golden, write_bundle
from artifacts.inputs import TableInput, input_name
from artifacts.manifest import (
    BUNDLE_FILES,
    EVIDENCE,
    GOLDEN,
    ONNX,
    PARITY,
    REPORT,
    DataInfo,
    Manifest,
    Study,
)
from artifacts.networks import DeployedClassifier
from artifacts.profile import ColumnProfile, column_profiles
from artifacts.references import promote as promote_bundle
from training.batches import Batches
from training.data import Dataset
from training.evidence import gather_evidence
from training.export import export_model
from training.fit import Fit
from training.gate import open_formats, parity_gate, summary, synthetic_rows
from training.measure import measure, measured_lines
from training.recipe import Recipe
from training.report.page import render_report
from training.speed import measure_speed

GOLDEN_ROWS = 256
_GOLDEN_BYTES = 4 * 2**20
_PACKAGES = ("parityline", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "pillow")


@dataclass(frozen=True)
class Trained:
    """A fitted model and what it came from.

    resolved: the recipe as it was carried out. study: the search that found it.
    """

    recipe: Recipe
    resolved: dict[str, Any]
    dataset: Dataset
    info: DataInfo
    model: DeployedClassifier
    batches: dict[str, Batches]
    fitted: Fit
    study: Study | None = None


def release(trained: Trained, store: Path, say: Callable[[str], None], *, promote: bool) -> Bundle:
    """Measure the model, export it, prove the formats against it and write the bundle.

    say: takes each line for the user. Raises ParityError or BundleError.
    """
    recipe, dataset, model, fitted = (
        trained.recipe, trained.dataset, trained.model, trained.fitted
    )  # fmt: skip
    model.eval()
    measured = measure(
        model, trained.batches, dataset, recipe, fitted.history, fitted.kept_epoch
    )  # fmt: skip
    for line in measured_lines(measured, dataset.labels):
        say(line)

    model.cpu()
    model.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    name = input_name(dataset.input)
    # Made rows: torch.export keeps its example in the file.
    exported = export_model(model, synthetic_rows(dataset.input, 2), name)
    eager = run_module(model, "cpu")
    formats = open_formats(exported.files)
    flops = flops_per_row(model, dataset)
    held_out = [dataset.validation.raw, dataset.test.raw]
    largest = max_batch_size(recipe, dataset)
    parity = parity_gate(eager, formats, held_out, dataset.input, largest, say, flops)
    agreed = summary(parity)
    for file, result in agreed.items():
        say(
            f"gate: {file} agrees with eager: largest difference {result.max_abs_diff:.2g} "
            f"over {result.rows} answers, {result.label_disagreements} other labels",
        )

    draft = Manifest(
        name=recipe.name,
        version="",
        content_sha256="",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task="binary" if len(dataset.labels) == 2 else "multiclass",
        labels=dataset.labels,
        input=dataset.input,
        preprocessing=model.preprocess.steps,
        network=recipe.model,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        temperature=measured.temperature,
        threshold=measured.threshold,
        max_batch_size=largest,
        metrics=measured.metrics,
        baseline=measured.baseline,
        calibration=measured.calibration,
        verdict=measured.verdict,
        history=fitted.history,
        kept_epoch=fitted.kept_epoch,
        study=trained.study,
        recipe=trained.resolved,
        seed=recipe.train.seed,
        data=trained.info,
        profile=_profile(dataset),
        packages=_package_versions(),
        commit=commit(),
        onnx_opset=exported.onnx_opset,
        parity=agreed,
        speed=measure_speed(formats, synthetic_rows(dataset.input, largest)),
        files={},
    )
    golden = _golden(eager, dataset, recipe)
    evidence = gather_evidence(
        dataset, measured.test_probabilities, measured.threshold, formats[ONNX], largest, flops,
        with_rows=recipe.export.golden == "real",
    )  # fmt: skip
    files = {
        **exported.files,
        GOLDEN: golden.encode(),
        PARITY: parity.encode(),
        EVIDENCE: evidence.encode(),
    }
    assert {*files, REPORT} == set(BUNDLE_FILES), sorted(files)
    bundle = write_bundle(
        store, draft, files, lambda manifest: render_report(manifest, parity, golden, evidence)
    )
    say(f"released: {bundle.manifest.reference} ({bundle.path})")
    if promote:
        promote_bundle(store, bundle.manifest.reference)
        say(f"promoted: {bundle.manifest.name} now means this version")
    return bundle


def flops_per_row(model: torch.nn.Module, dataset: Dataset) -> int:
    """The floating-point operations of one answer, as torch counts them."""
    row = torch.from_numpy(synthetic_rows(dataset.input, 1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(row)
    return int(counter.get_total_flops())


def max_batch_size(recipe: Recipe, dataset: Dataset) -> int:
    """The recipe's, or 1024; for large pictures as many as hold 4 million values, at least 64."""
    values = int(np.prod(dataset.input.shape))
    return recipe.export.max_batch_size or min(1024, max(64, 2**22 // values))


def _profile(dataset: Dataset) -> tuple[ColumnProfile, ...]:
    if not isinstance(dataset.input, TableInput):
        return ()
    assert isinstance(dataset.train.raw, np.ndarray)
    return column_profiles(dataset.train.raw, dataset.input)


def _golden(eager: Model, dataset: Dataset, recipe: Recipe) -> Golden:
    """Rows spread evenly over the test part, or made ones, with eager's answers."""
    bytes_per_row = dataset.test.raw[0].nbytes
    most = max(16, min(GOLDEN_ROWS, _GOLDEN_BYTES // bytes_per_row))
    if recipe.export.golden == "synthetic":
        raw = synthetic_rows(dataset.input, most)
        labels = np.full(len(raw), -1, dtype=np.int64)
    else:
        rows = np.unique(np.linspace(0, len(dataset.test) - 1, most).astype(np.int64))
        raw, labels = dataset.test.raw[rows], dataset.test.labels[rows]
    logits, probabilities = eager(raw)
    return Golden(raw, logits, probabilities, labels)


def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        for name in (package, f"{package}-gpu"):
            try:
                versions[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def commit() -> str | None:
    """The commit of the working directory, "+changes" where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
