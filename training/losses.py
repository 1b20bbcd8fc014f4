"""What training lowers: the loss of logits, and the class that they name."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import TrainConfig


def loss_of(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """Mean loss in nats: BCE with logits for one logit, cross-entropy for one a class.

    logits: [N, K], [N, 1], or either for each of M members, [N, M, ...], whose losses are
    averaged. labels: int64 [N]. class_weights: float32 [K], what a row of each class counts.
    total: what the sum over rows is divided by, for rows that are a piece of a step's; by default
    their number, or the sum of their class weights.
    """
    logits = logits.float()
    members = 1
    if logits.ndim == 3:
        members = logits.shape[1]
        labels = labels.repeat_interleave(logits.shape[1])
        logits = logits.flatten(0, 1)
    # Of rows that count alike the kernel sums or averages by itself.
    reduction = "none" if class_weights is not None else "mean" if total is None else "sum"
    if logits.shape[1] == 1:
        targets = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits[:, 0], targets, reduction=reduction
        )
    else:
        losses = functional.cross_entropy(
            logits, labels, reduction=reduction, label_smoothing=label_smoothing
        )
    if class_weights is None:
        return losses if total is None else losses / (total * members)
    weights = class_weights[labels]
    whole = weights.sum() if total is None else total * members
    return (losses * weights).sum() / whole


def class_weights(labels: Tensor, config: TrainConfig) -> Tensor | None:
    """rows / (classes * rows of the class), float32 [K], where config asks for balance."""
    if config.class_weight == "none":
        return None
    counts = torch.bincount(labels)
    return (len(labels) / (len(counts) * counts.clamp(min=1))).float()


def predicted_class(logits: Tensor) -> Tensor:
    """The most probable class, int64 [N]; of members, by their mean logits."""
    if logits.ndim == 3:
        logits = logits.mean(dim=1)
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.int64)
    return logits.argmax(dim=1)
