"""How good the answers are, each figure with a 95% interval."""

from __future__ import annotations

import numpy as np

from artifacts.manifest import Estimate, Metrics

_Z = 1.959963984540054  # the normal distribution's 97.5% point


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    """Accuracy and log loss of probabilities, [N, K], against labels, int64 [N]; N >= 1."""
    rows = np.arange(len(labels))
    chosen = probabilities[rows, labels].astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    return Metrics(
        rows=len(labels),
        accuracy=wilson_interval(int(correct.sum()), len(labels)),
        # Probabilities are float32: below its smallest normal number nothing more is known.
        log_loss=mean_interval(-np.log(np.clip(chosen, np.finfo(np.float32).tiny, 1.0))),
    )


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval, which holds near 0 and 1 too (Wilson 1927)."""
    share = successes / trials
    denominator = 1 + _Z**2 / trials
    center = (share + _Z**2 / (2 * trials)) / denominator
    half = _Z * np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / denominator
    return Estimate(
        value=share,
        low=min(share, max(0.0, float(center - half))),
        high=max(share, min(1.0, float(center + half))),
    )


def mean_interval(values: np.ndarray) -> Estimate:
    """A mean of values >= 0 with its normal interval, cut at 0; one value is its own interval."""
    mean = float(values.mean())
    half = float(_Z * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(value=mean, low=max(0.0, mean - half), high=mean + half)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [classes, classes]: row the true class, column the predicted one."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)
