"""Figures of how good answers are, each with a 95% interval: the one copy of every rule.

Training computes them from all rows of a part at once, a scoring job from counts and sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from artifacts.manifest import Estimate, LabelMetrics, Metrics, ReliabilityBin

_Z = 1.959963984540054  # the normal distribution's 97.5% point
# With more, a confusion matrix is megabytes of the manifest, and nobody reads it.
MOST_CONFUSED = 200
BINS = 15
_EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


def metrics_of(
    *,
    confusion: np.ndarray | None,
    label_counts: Sequence[np.ndarray],
    log_loss: Estimate,
    auc: Estimate | None,
    average_precision: Estimate | None,
    names: Sequence[str] = (),
) -> Metrics:
    """The figures of a part as the manifest keeps them.

    confusion: int64 [K, K] of at most MOST_CONFUSED labels, rows the true ones. label_counts: as
    `label_metrics` takes them. names: of the K labels, for the figures of each; without them those
    are left out.
    """
    hits, support, _ = label_counts
    rows = int(support.sum())
    return Metrics(
        rows=rows,
        accuracy=wilson_interval(int(hits.sum()), rows),
        log_loss=log_loss,
        auc=auc,
        average_precision=average_precision,
        per_label=dict(zip(names, label_metrics(*label_counts), strict=True)) if names else {},
        confusion=None if confusion is None else tuple(map(tuple, confusion.tolist())),
    )


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [classes, classes]: row the true class, column the predicted one."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def label_counts(
    predicted: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each label, int64 [classes]: rows answered it rightly, that are it, answered it."""
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    support = np.bincount(labels, minlength=classes)
    return hits, support, np.bincount(predicted, minlength=classes)


def label_metrics(
    hits: np.ndarray, support: np.ndarray, answered: np.ndarray
) -> list[LabelMetrics]:
    """Precision, recall and F1 of each label, from `label_counts`.

    The intervals of precision and recall are Wilson's. F1 = 2J / (1 + J), where J is the share of
    rows that are and are answered that label among those that are or are answered it: its interval
    is Wilson's of J, put through the same function.
    """
    figures = []
    for right, true, given in zip(hits.tolist(), support.tolist(), answered.tolist(), strict=True):
        either = true + given - right
        overlap = wilson_interval(right, either) if either else None
        figures.append(
            LabelMetrics(
                support=true,
                precision=wilson_interval(right, given) if given else None,
                recall=wilson_interval(right, true) if true else None,
                f1=overlap
                and Estimate(
                    value=_f1(overlap.value), low=_f1(overlap.low), high=_f1(overlap.high)
                ),
            )
        )
    return figures


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row's negative log-likelihood in nats, float64 [N]: of float32 [N, K], int64 [N]."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # Probabilities are float32: below its smallest normal number nothing more is known.
    losses: np.ndarray = -np.log(np.clip(chosen, np.finfo(np.float32).tiny, 1.0))
    return losses


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The squared distance from the true label's 1 and the others' 0, summed: float64 [N]."""
    doubles = probabilities.astype(np.float64)
    squares = np.einsum("nk,nk->n", doubles, doubles)
    scores: np.ndarray = np.maximum(squares - 2 * doubles[np.arange(len(labels)), labels] + 1, 0.0)
    return scores


def bin_places(confidence: np.ndarray) -> np.ndarray:
    """Which of the 15 bins (0, 1/15], ... (14/15, 1] a confidence is in: int64 [N]."""
    return np.searchsorted(_EDGES, confidence.astype(np.float64), side="left")


def reliability(
    counts: np.ndarray, confidences: np.ndarray, hits: np.ndarray
) -> tuple[ReliabilityBin, ...]:
    """The 15 bins, from the rows, the sum of confidences and the right answers in each: [15]."""
    return tuple(
        ReliabilityBin(rows=int(n), confidence=float(total / n), accuracy=float(right / n))
        if n
        else ReliabilityBin(rows=0)
        for n, total, right in zip(counts, confidences, hits, strict=True)
    )


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Guo et al.'s ECE: the mean distance of confidence from accuracy, over rows."""
    rows = sum(entry.rows for entry in bins)
    return sum(
        entry.rows / rows * abs(entry.confidence - entry.accuracy)
        for entry in bins
        if entry.confidence is not None and entry.accuracy is not None
    )


def area_interval(areas: Sequence[float], positives: Sequence[int], rows: int) -> Estimate:
    """The mean of areas under ROC curves of one label against the rest of `rows` rows.

    positives: the rows of each such label, neither none nor all. The interval is that of Hanley
    and McNeil 1982; for several labels with the mean of their standard errors, which is an upper
    bound.
    """
    errors = []
    for area, n in zip(areas, positives, strict=True):
        m = rows - n
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        spread = (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)
        errors.append(math.sqrt(max(0.0, (area * (1 - area) + spread) / (n * m))))
    mean, half = float(np.mean(areas)), float(_Z * np.mean(errors))
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval, which holds near 0 and 1 too (Wilson 1927)."""
    return share_interval(successes / trials, trials)


def share_interval(share: float, trials: int) -> Estimate:
    """Wilson's interval for what is a share of `trials`, if not of whole ones.

    Of an average precision, on as many trials as the label has rows, it is the binomial interval
    of Boyd, Eng and Page 2013 in Wilson's form.
    """
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
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return normal_interval(float(values.mean()), deviation, len(values))


def normal_interval(mean: float, deviation: float, rows: int) -> Estimate:
    """`mean_interval`, from the mean and the standard deviation of that many values."""
    half = _Z * deviation / math.sqrt(rows)
    return Estimate(value=mean, low=max(0.0, mean - half), high=mean + half)


def standard_error(estimate: Estimate) -> float:
    """The standard error behind a normal interval."""
    return (estimate.high - estimate.value) / _Z


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """first - second, of two independent figures with intervals.

    For shares with Wilson's intervals this is Newcombe's hybrid score interval (Newcombe 1998,
    method 10); the same sum of squares serves other figures (Zou and Donner 2008).
    """
    value = first.value - second.value
    low = math.hypot(first.value - first.low, second.high - second.value)
    high = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=value - low, high=value + high)
