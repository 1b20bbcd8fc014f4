"""How good the answers to a part are, from all its rows at once; curves by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts.decision import decide
from artifacts.estimates import (
    MOST_CONFUSED,
    area_interval,
    confusion_matrix,
    label_counts,
    log_losses,
    mean_interval,
    metrics_of,
    share_interval,
)
from artifacts.manifest import Estimate, Metrics


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
    return metrics_of(
        confusion=(
            confusion_matrix(answered, labels, classes) if classes <= MOST_CONFUSED else None
        ),
        label_counts=label_counts(answered, labels, classes),
        log_loss=mean_interval(log_losses(probabilities, labels)),
        auc=area_under_curve(probabilities, labels),
        average_precision=average_precision(probabilities, labels) if classes == 2 else None,
        names=names,
    )


def area_under_curve(probabilities: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """ROC AUC by torchmetrics; with more than two classes the mean of one against the rest.

    None where a class has no row, or all of them. The interval is that of `area_interval`.
    """
    import torch
    from torchmetrics.functional.classification import binary_auroc

    classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else (1,)
    areas, positives = [], []
    for index in classes:
        positive = labels == index
        if positive.all() or not positive.any():
            return None
        scores = torch.from_numpy(np.ascontiguousarray(probabilities[:, index]))
        area = float(binary_auroc(scores, torch.from_numpy(positive).long(), validate_args=False))
        areas.append(min(1.0, area))
        positives.append(int(positive.sum()))
    return area_interval(areas, positives, len(labels))


def average_precision(probabilities: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """Average precision of the second of two labels, by torchmetrics; None where it has no row.

    The interval is that of `share_interval`, on as many trials as the label has rows.
    """
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    positives = int((labels == 1).sum())
    if positives == 0:
        return None
    scores = torch.from_numpy(np.ascontiguousarray(probabilities[:, 1]))
    value = float(binary_average_precision(scores, torch.from_numpy(labels), validate_args=False))
    return share_interval(min(1.0, value), positives)
