"""A part's loss, accuracy, logits and probabilities, in eval mode."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from training.batches import Batches
from training.losses import loss_of, predicted_class
from training.ranks import ALONE, Ranks


@torch.no_grad()
def evaluate(
    network: nn.Module, preprocess: nn.Module, part: Batches, ranks: Ranks = ALONE
) -> tuple[float, float]:
    """Loss in nats and accuracy, in eval mode; the processes share the rows."""
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=part.device)
    for raw, labels in part.all(part.answered_at_once, ranks.rank, ranks.world):
        inputs = preprocess(raw)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits = network(inputs)
        sums[0] += loss_of(logits, labels).double() * len(labels)
        sums[1] += (predicted_class(logits) == labels).sum()
    loss_sum, correct = ranks.sum(sums).tolist()
    return loss_sum / part.rows, correct / part.rows


def logits_of(model: nn.Module, part: Batches) -> np.ndarray:
    """The deployed model's logits, float32 [N, K], computed on the part's device."""
    return _output(model, part, 0)


def probabilities_of(model: nn.Module, part: Batches) -> np.ndarray:
    """The deployed model's probabilities, float32 [N, K], computed on the part's device."""
    return _output(model, part, 1)


def _output(model: nn.Module, part: Batches, index: int) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate(
            [model(raw)[index].cpu().numpy() for raw, _ in part.all(part.answered_at_once)]
        )
