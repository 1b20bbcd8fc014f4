"""Everything that is measured after the fit: temperature, threshold, metrics, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts.estimates import log_losses, mean_interval, standard_error, wilson_interval
from artifacts.manifest import Calibration, Epoch, Estimate, Metrics, Verdict
from artifacts.networks import DeployedClassifier
from training.batches import Batches
from training.calibration import (
    LEAST_ROWS,
    calibration_figures,
    fit_temperature,
    probabilities_at,
)
from training.data import Dataset
from training.evaluation import logits_of
from training.metrics import classification_metrics
from training.recipe import Recipe
from training.threshold import choose_threshold
from training.verdict import judge


@dataclass(frozen=True)
class Measured:
    """What a run found out about its model, as the manifest keeps it. metrics: by part.

    baseline: the test part's, without a model. test_probabilities: float32 [N, K].
    """

    temperature: float
    threshold: float
    metrics: dict[str, Metrics]
    baseline: Metrics
    calibration: Calibration
    verdict: Verdict
    test_probabilities: np.ndarray


def measure(
    model: DeployedClassifier,
    batches: Mapping[str, Batches],
    dataset: Dataset,
    recipe: Recipe,
    history: tuple[Epoch, ...],
    kept_epoch: int,
) -> Measured:
    """Set `model.temperature`, choose the threshold, and measure the model so calibrated.

    model: in eval mode with the weights of `kept_epoch`, on the device of `batches`, which hold
    the parts "train", "validation" and "test" of `dataset`. recipe: with its epochs resolved.
    Temperature and threshold are chosen on the validation part. Raises DataError where
    export.threshold does not fit the labels or the validation part.
    """
    assert not model.training and model.temperature == 1.0
    labels = {name: part.labels for name, part in dataset.parts.items()}
    logits = {name: logits_of(model, part) for name, part in batches.items()}
    if recipe.export.calibrate:
        model.temperature = fit_temperature(logits["validation"], labels["validation"])
    probabilities = {
        name: probabilities_at(values, model.temperature) for name, values in logits.items()
    }
    calibration = _calibration(logits, probabilities, labels, recipe, model.temperature)
    threshold = choose_threshold(
        recipe.export, probabilities["validation"], labels["validation"], dataset.labels
    )
    metrics = {
        name: classification_metrics(probabilities[name], labels[name], dataset.labels, threshold)
        for name in dataset.parts
    }
    # The history's losses are those before the calibration.
    error = standard_error(calibration.before["validation"].log_loss)
    verdict = judge(history, kept_epoch, metrics, error, recipe)
    return Measured(
        model.temperature, threshold, metrics,
        label_shares_baseline(labels["train"], labels["test"], len(dataset.labels)),
        calibration, verdict, probabilities["test"],
    )  # fmt: skip


def label_shares_baseline(train: np.ndarray, test: np.ndarray, classes: int) -> Metrics:
    """How well rows are answered by the labels' shares of the training part alone.

    train, test: label indices, int64. The most frequent label is the answer.
    """
    shares = np.bincount(train, minlength=classes) / len(train)
    probabilities = np.broadcast_to(shares.astype(np.float32), (len(test), classes))
    right = int((test == int(shares.argmax())).sum())
    return Metrics(
        rows=len(test),
        accuracy=wilson_interval(right, len(test)),
        log_loss=mean_interval(log_losses(probabilities, test)),
    )


def _calibration(
    logits: Mapping[str, np.ndarray],
    probabilities: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    recipe: Recipe,
    temperature: float,
) -> Calibration:
    note = None
    if not recipe.export.calibrate:
        note = "export.calibrate is false"
    elif len(labels["validation"]) < LEAST_ROWS:
        note = f"fewer than {LEAST_ROWS} validation rows"
    elif temperature == 1:
        note = "no other temperature suits the validation part better"
    before, after = {}, {}
    for name in ("validation", "test"):
        keep_bins = name == "test"
        uncalibrated = probabilities_at(logits[name], 1.0)
        before[name] = calibration_figures(uncalibrated, labels[name], keep_bins=keep_bins)
        after[name] = calibration_figures(probabilities[name], labels[name], keep_bins=keep_bins)
    return Calibration(before=before, after=after, note=note)


def measured_lines(measured: Measured, names: tuple[str, ...]) -> list[str]:
    """What a run says of them on the terminal. names: of the labels."""
    lines = [
        f"{name}: {_metrics_line(figures, measured.threshold)}"
        for name, figures in measured.metrics.items()
    ]
    lines.append(f"no model: {_metrics_line(measured.baseline, 0.5)}")
    before, after = measured.calibration.before["test"], measured.calibration.after["test"]
    if measured.calibration.note is None:
        lines.append(
            f"calibration: temperature {measured.temperature:.3g}; of the test part: "
            f"ECE {before.ece:.4f} -> {after.ece:.4f}, "
            f"log loss {before.log_loss.value:.4f} -> {after.log_loss.value:.4f}, "
            f"Brier score {before.brier.value:.4f} -> {after.brier.value:.4f}"
        )
    else:
        lines.append(
            f"calibration: temperature 1, as {measured.calibration.note}; of the test part: "
            f"ECE {after.ece:.4f}, log loss {after.log_loss.value:.4f}, "
            f"Brier score {after.brier.value:.4f}"
        )
    if measured.threshold != 0.5:
        lines.append(
            f"threshold: {names[1]} is answered where its probability is above "
            f"{measured.threshold:g}"
        )
    lines.append(f"verdict: {measured.verdict.text}")
    if measured.verdict.advice:
        lines.append(f"verdict: try {'; '.join(measured.verdict.advice)}")
    return lines


def _metrics_line(metrics: Metrics, threshold: float) -> str:
    shown = ", ".join(f"{name} {_interval(figure)}" for name, figure in metrics.headline.items())
    at = "" if threshold == 0.5 else f", threshold {threshold:g}"
    return f"{shown}  (95%, n = {metrics.rows}{at})"


def _interval(figure: Estimate) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"
