"""How good the answers are, each figure with a 95% interval."""

from __future__ import annotations

import math

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
        auc=area_under_curve(probabilities, labels),
    )


def area_under_curve(probabilities: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """ROC AUC, with more than two classes the mean of one against the rest (macro).

    None where a class has no row, or all of them. The interval is that of Hanley and McNeil 1982;
    for several classes with the mean of their standard errors, which is an upper bound.
    """
    from sklearn.metrics import roc_auc_score

    classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else (1,)
    values, errors = [], []
    for index in classes:
        positive = labels == index
        n, m = int(positive.sum()), int((~positive).sum())
        if n == 0 or m == 0:
            return None
        area = float(roc_auc_score(positive, probabilities[:, index]))
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        spread = (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)
        variance = (area * (1 - area) + spread) / (n * m)
        values.append(area)
        errors.append(math.sqrt(max(0.0, variance)))
    mean, half = float(np.mean(values)), float(_Z * np.mean(errors))
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


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
