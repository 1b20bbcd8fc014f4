"""Whether a network can learn a handful of rows by heart.

What trains at all can drive the loss of 8 rows near zero; a pipeline that is cut somewhere cannot
(Karpathy 2019, "A Recipe for Training Neural Networks").
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.losses import loss_of, predicted_class

RATES = (1e-3, 1e-2, 1e-1, 1e-4)
STEPS = 150
NEAR_ZERO = 0.05
# What ignores its input ends at 1 or above. Networks that train end up to 0.5: SqueezeNet of two
# classes, whose last ReLU may leave one of them without an answer.
_HARDLY = 0.75
# A row counts as another one from this share of the rows' median distance on.
_APART = 0.1


@dataclass(frozen=True)
class Memorized:
    """What became of the rows, at the learning rate that ended lowest.

    start, end: loss in nats. right: how many rows are answered with their label at the end.
    alike: the loss of the best answer that is the same for every row.
    spread: the largest difference between two rows' logits at the end.
    finished: whether it was learned, or every rate had its steps before the time was over.
    """

    rows: int
    right: int
    start: float
    end: float
    steps: int
    alike: float
    spread: float
    finished: bool

    @property
    def learned(self) -> bool:
        """Whether the loss is near zero and every row right."""
        return self.end < NEAR_ZERO and self.right == self.rows

    @property
    def failed(self) -> bool:
        """Whether all was tried and the loss is hardly below that of always the same answer."""
        return self.finished and not self.end < _HARDLY * self.alike


def independent_rows(inputs: Tensor, labels: Tensor, count: int) -> Tensor:
    """Up to `count` rows that even a linear map could tell apart, whatever their labels.

    inputs: float [N, ...]; labels: int64 [N]. Returns row numbers, int64 on CPU, of two classes at
    least; of one row where all rows are alike. Each stands off the affine span of those before it;
    a class that has fewer rows among them comes first. In few dimensions these are fewer rows:
    what no network of that kind need learn is not asked of it.
    """
    x = inputs.detach().flatten(1).cpu().double().numpy()
    y = labels.cpu().numpy()
    for first in range(len(x)):
        residual = x - x[first]
        distances = np.linalg.norm(residual, axis=1)
        # Rows that differ by rounding alone are alike.
        other = distances > 1e-6 * max(1.0, float(np.abs(x).max()))
        if (other & (y != y[first])).any():
            break
    else:
        return torch.tensor([0])
    apart = _APART * np.median(distances[other])
    chosen = [first]
    taken = np.bincount(y[chosen], minlength=y.max() + 1)
    while len(chosen) < count:
        free = np.linalg.norm(residual, axis=1) > apart
        if len(chosen) == 1 and (free & (y != y[first])).any():
            free &= y != y[first]
        if not free.any():
            break
        row = int(np.where(free, taken[y], len(y)).argmin())
        chosen.append(row)
        taken[y[row]] += 1
        direction = residual[row] / np.linalg.norm(residual[row])
        residual = residual - np.outer(residual @ direction, direction)
    return torch.tensor(chosen)


def memorize(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    cast: Callable[[], AbstractContextManager[object]],
    seconds: float,
) -> Memorized:
    """Train copies of `network` on these rows with Adam, at each of RATES in turn for STEPS.

    network: in the modes to train in, all trainable; stays as it is. inputs: preprocessed [N, ...].
    It ends when the rows are learned, or after `seconds`.
    """
    deadline = time.perf_counter() + seconds
    counts = torch.bincount(labels).double()
    alike = torch.special.entr(counts / len(labels)).sum().item()
    best: Memorized | None = None
    for rate in RATES:
        trial = copy.deepcopy(network)
        optimizer = torch.optim.Adam(trial.parameters(), lr=rate)
        start = math.nan
        for step in range(STEPS + 1):
            with cast():
                logits = trial(inputs)
            loss = loss_of(logits, labels)
            end, late = loss.item(), time.perf_counter() > deadline
            right = int((predicted_class(logits.detach()) == labels).sum().item())
            start = end if step == 0 else start
            learned = end < NEAR_ZERO and right == len(labels)
            if learned or late or step == STEPS or not math.isfinite(end):
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        spread = (logits.detach() - logits.detach()[:1]).abs().max().item()
        found = Memorized(
            len(labels), right, start, end, step, alike, spread, finished=learned or not late
        )
        if best is None or found.end < best.end or not math.isfinite(best.end):
            best = found
        if learned or late:
            break
    assert best is not None
    return dataclasses.replace(best, finished=found.finished)
