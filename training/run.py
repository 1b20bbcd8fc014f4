"""One run, from a recipe to a released bundle: data, training, metrics, export, gate, release.

parityline train digits
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from artifacts.backends import Model, run_module
from artifacts.bundle import Bundle, Golden, write_bundle
from artifacts.devices import resolve_device
from artifacts.errors import BundleError, DeviceError
from artifacts.inputs import input_name
from artifacts.manifest import BUNDLE_FILES, GOLDEN, PARITY, REPORT, Manifest, Metrics
from artifacts.networks import DeployedClassifier, build_network
from artifacts.preprocess import Preprocess
from artifacts.references import promote as promote_bundle
from artifacts.summary import column_lines, describe_input
from training.batches import Batches
from training.data import Dataset, load_dataset
from training.encoding import preprocessing
from training.evaluation import probabilities_of
from training.export import export_model
from training.fit import Backbone, Fit, fit
from training.gate import parity_gate, summary, synthetic_rows
from training.metrics import classification_metrics, confusion_matrix
from training.precision import compute_precision
from training.preflight import preflight as check_first
from training.progress import epoch_display
from training.recipe import Recipe
from training.report import encode_parity, render_report
from training.schedule import resolve_schedule
from training.transfer import load_backbone, weights_digest, with_backbone_defaults

GOLDEN_ROWS = 256
_GOLDEN_BYTES = 4 * 2**20
_PACKAGES = ("parityline", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "pillow")


def run(
    recipe: Recipe, store: Path, *, promote: bool, console: Console, preflight: bool = True
) -> Bundle:
    """Train `recipe` and release the bundle into `store`.

    Until the last step, which is one rename, the store holds nothing of it.
    preflight: see first, in a second or two, whether it can be trained at all.
    Raises DataError, DeviceError, ParityError or BundleError, each with one line for its reader.
    """
    began = time.perf_counter()
    _check_writable(store)
    device = resolve_device(recipe.train.device)
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"the driver shows a CUDA device, but this torch ({torch.__version__}) has no CUDA; "
            "install its CUDA build, or set train.device=cpu"
        )
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    recipe = with_backbone_defaults(recipe)
    dataset = load_dataset(recipe.data)
    recipe = recipe.model_copy(update={"train": resolve_schedule(recipe.train, len(dataset.train))})
    rows = ", ".join(f"{len(part)} {name}" for name, part in dataset.parts.items())
    _say(console, f"data: {dataset.source}: {rows}; {len(dataset.labels)} classes")
    _say(console, f"input: {describe_input(dataset.input)}")
    for line in (*dataset.notes, *column_lines(dataset.input)):
        _say(console, f"data: {line}")

    torch.manual_seed(recipe.train.seed)
    steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
    network = build_network(recipe.model, dataset.input.shape, steps, len(dataset.labels))
    backbone = load_backbone(network, recipe)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    _say(console, f"model: {recipe.model.kind}, {_parameters_line(network, backbone)}")
    _say(console, f"device: {_device_name(device)}")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = DeployedClassifier(Preprocess(steps, dataset.input.shape), network, temperature=1.0).to(
        device
    )
    precision = compute_precision(network, recipe.train, torch.device(device))
    batches = {
        name: Batches(part, torch.device(device), recipe.data.workers)
        for name, part in dataset.parts.items()
    }
    if preflight:
        _say(console, check_first(
            network, model.preprocess, batches["train"], len(dataset.labels), recipe.train, backbone
        ))  # fmt: skip
    began_training = time.perf_counter()
    with epoch_display(console, recipe.train.epochs) as show:
        fitted = fit(
            network, model.preprocess, batches["train"], batches["validation"],
            recipe.train, show, backbone,
        )  # fmt: skip
    _say(console, _fit_line(fitted, time.perf_counter() - began_training))

    model.eval()
    probabilities = {name: probabilities_of(model, part) for name, part in batches.items()}
    metrics = {
        name: classification_metrics(probabilities[name], part.labels)
        for name, part in dataset.parts.items()
    }
    for name, figures in metrics.items():
        _say(console, f"{name}: {_metrics_line(figures)}")

    model.cpu()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    del batches
    name = input_name(dataset.input)
    # Made rows: torch.export keeps its example in the file.
    exported = export_model(model, synthetic_rows(dataset.input, 2), name)
    eager = run_module(model, "cpu")
    held_out = [dataset.validation.raw, dataset.test.raw]
    largest = max_batch_size(recipe, dataset)
    parity = parity_gate(
        eager, exported.files, held_out, dataset.input, largest,
        lambda line: _say(console, line), flops_per_row(model, dataset),
    )  # fmt: skip
    for file, result in summary(parity).items():
        _say(
            console,
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
        parameters=parameters,
        temperature=model.temperature,
        max_batch_size=largest,
        metrics=metrics,
        history=fitted.history,
        kept_epoch=fitted.kept_epoch,
        recipe=_resolved(recipe, device, precision, largest),
        seed=recipe.train.seed,
        data=dataset.info(),
        packages=_package_versions(),
        commit=_commit(),
        onnx_opset=exported.onnx_opset,
        parity=summary(parity),
        files={},
    )
    confusion = confusion_matrix(
        probabilities["test"].argmax(axis=1), dataset.test.labels, len(dataset.labels)
    )
    files = {
        **exported.files,
        GOLDEN: _golden(eager, dataset, recipe).encode(),
        PARITY: encode_parity(parity),
        REPORT: render_report(draft, fitted, parity, confusion).encode(),
    }
    assert set(files) == set(BUNDLE_FILES), sorted(files)
    bundle = write_bundle(store, draft, files)
    _say(console, f"released: {bundle.manifest.reference} ({bundle.path})")
    if promote:
        promote_bundle(store, bundle.manifest.reference)
        _say(console, f"promoted: {bundle.manifest.name} now means this version")
    _say(console, f"seconds: {time.perf_counter() - began:.1f}")
    return bundle


def _check_writable(store: Path) -> None:
    """Raise BundleError before the training, not after it, where nothing could be released."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise BundleError(f"the store {store} cannot be written to: {error.strerror}") from error


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


def _resolved(recipe: Recipe, device: str, precision: str, largest: int) -> dict[str, Any]:
    """The recipe as it was carried out: what was "auto" as it was, files without their folders."""
    content = recipe.model_dump(
        mode="json", exclude={"summary": True, "data": {"path", "test_path", "workers"}}
    )
    content["train"].update(device=device, threads=torch.get_num_threads(), precision=precision)
    content["export"]["max_batch_size"] = largest
    digest = weights_digest(recipe)
    if digest is not None:
        content["transfer"].update(
            weights=Path(recipe.transfer.weights).name, weights_sha256=digest
        )
    return content


def _parameters_line(network: torch.nn.Module, backbone: Backbone | None) -> str:
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    total = sum(sizes.values())
    if backbone is None:
        return f"{total:,} parameters, all trained"
    if not backbone.freeze_epochs:
        return f"{total:,} parameters, all trained; all but the head at {backbone.lr:g} of the rate"
    trainable = sum(size for name, size in sizes.items() if name in backbone.head)
    epochs = "epoch" if backbone.freeze_epochs == 1 else f"{backbone.freeze_epochs} epochs"
    return (
        f"{total:,} parameters, {trainable:,} trained and {total - trainable:,} frozen for the "
        f"first {epochs}"
    )


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


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _device_name(device: str) -> str:
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def _fit_line(fitted: Fit, seconds: float) -> str:
    stopped = "stopped early, " if fitted.stopped_early else ""
    return (
        f"trained: {len(fitted.history)} epochs in {seconds:.1f} s, {stopped}"
        f"the weights of epoch {fitted.kept_epoch} are kept"
    )


def _metrics_line(metrics: Metrics) -> str:
    accuracy, loss = metrics.accuracy, metrics.log_loss
    auc = metrics.auc
    ranked = "" if auc is None else f"AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}], "
    return (
        f"accuracy {accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}], {ranked}"
        f"log loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}]  (95%, n = {metrics.rows})"
    )


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


def _commit() -> str | None:
    """The commit of the working directory, "+changes" where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
