"""How good the answers are, each figure with a 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from artifacts.decision import decide
from artifacts.manifest import Estimate, LabelMetrics, Metrics

_Z = 1.959963984540054  # the normal distribution's 97.5% point
# With more, a confusion matrix is megabytes of the manifest, and nobody reads it.
MOST_CONFUSED = 200


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str] = (),
    threshold: float = 0.5,
) -> Metrics:
    """Probabilities, float32 [N, K], against true labels, int64 [N]; N >= 1.

    names: of the K labels, for the figures of each; without them those are left out.
    threshold: as in `decide`; for accuracy, the figures of each label and the confusion matrix.
    """
    answered = decide(probabilities, threshold)
    classes = probabilities.shape[1]
    confusion = confusion_matrix(answered, labels, classes)
    return Metrics(
        rows=len(labels),
        accuracy=wilson_interval(int(np.trace(confusion)), len(labels)),
        log_loss=mean_interval(log_losses(probabilities, labels)),
        auc=area_under_curve(probabilities, labels),
        average_precision=average_precision(probabilities, labels) if classes == 2 else None,
        per_label=dict(zip(names, label_metrics(confusion), strict=True)) if names else {},
        confusion=(
            tuple(tuple(row) for row in confusion.tolist()) if classes <= MOST_CONFUSED else None
        ),
    )


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each row's negative log-likelihood in nats, float64 [N]."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # Probabilities are float32: below its smallest normal number nothing more is known.
    return -np.log(np.clip(chosen, np.finfo(np.float32).tiny, 1.0))


def area_under_curve(probabilities: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """ROC AUC by torchmetrics; with more than two classes the mean of one against the rest.

    None where a class has no row, or all of them. The interval is that of Hanley and McNeil 1982;
    for several classes with the mean of their standard errors, which is an upper bound.
    """
    import torch
    from torchmetrics.functional.classification import binary_auroc

    classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else (1,)
    values, errors = [], []
    for index in classes:
        positive = labels == index
        n, m = int(positive.sum()), int((~positive).sum())
        if n == 0 or m == 0:
            return None
        scores = torch.from_numpy(np.ascontiguousarray(probabilities[:, index]))
        area = float(binary_auroc(scores, torch.from_numpy(positive).long(), validate_args=False))
        area = min(1.0, area)
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        spread = (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)
        variance = (area * (1 - area) + spread) / (n * m)
        values.append(area)
        errors.append(math.sqrt(max(0.0, variance)))
    mean, half = float(np.mean(values)), float(_Z * np.mean(errors))
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def average_precision(probabilities: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """Average precision of the second of two labels, by torchmetrics; None where it has no row.

    The interval is the binomial one of Boyd, Eng and Page 2013, on as many trials as the label has
    rows, in Wilson's form.
    """
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    positives = int((labels == 1).sum())
    if positives == 0:
        return None
    scores = torch.from_numpy(np.ascontiguousarray(probabilities[:, 1]))
    value = float(binary_average_precision(scores, torch.from_numpy(labels), validate_args=False))
    return _wilson(min(1.0, value), positives)


def label_metrics(confusion: np.ndarray) -> list[LabelMetrics]:
    """Precision, recall and F1 of each label, from counts, int64 [K, K], rows the true labels.

    The intervals of precision and recall are Wilson's. F1 = 2J / (1 + J), where J is the share of
    rows that are and are answered that label among those that are or are answered it: its interval
    is Wilson's of J, put through the same function.
    """
    figures = []
    for index in range(len(confusion)):
        hits = int(confusion[index, index])
        support, answered = int(confusion[index].sum()), int(confusion[:, index].sum())
        either = support + answered - hits
        overlap = wilson_interval(hits, either) if either else None
        figures.append(
            LabelMetrics(
                support=support,
                precision=wilson_interval(hits, answered) if answered else None,
                recall=wilson_interval(hits, support) if support else None,
                f1=overlap
                and Estimate(
                    value=_f1(overlap.value), low=_f1(overlap.low), high=_f1(overlap.high)
                ),
            )
        )
    return figures


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval, which holds near 0 and 1 too (Wilson 1927)."""
    return _wilson(successes / trials, trials)


def _wilson(share: float, trials: int) -> Estimate:
    denominator = 1 + _Z**2 / trials
    center = (share + _Z**2 / (2 * trials)) / denominator
    half = _Z * np.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2)) / denominator
    return Estimate(
        value=share,
        low=min(share, max(0.0, float(center - half))),
        high=max(share, min(1.0, float(center + half))),
    )


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """first - second, of two independent figures with intervals.

    For shares with Wilson's intervals this is Newcombe's hybrid score interval (Newcombe 1998,
    method 10); the same sum of squares serves other figures (Zou and Donner 2008).
    """
    value = first.value - second.value
    low = math.hypot(first.value - first.low, second.high - second.value)
    high = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=value - low, high=value + high)


def mean_interval(values: np.ndarray) -> Estimate:
    """A mean of values >= 0 with its normal interval, cut at 0; one value is its own interval."""
    mean = float(values.mean())
    half = float(_Z * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(value=mean, low=max(0.0, mean - half), high=mean + half)


def standard_error(estimate: Estimate) -> float:
    """The standard error behind a normal interval."""
    return (estimate.high - estimate.value) / _Z


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [classes, classes]: row the true class, column the predicted one."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)
