"""Two recipes on the same test rows, each trained with several seeds: how much one is better."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from artifacts.decision import decide
from artifacts.estimates import log_losses, standard_error
from artifacts.manifest import Estimate
from training.calibration import fit_temperature, probabilities_at
from training.metrics import area_under_curve

# For each figure whether more is better.
FIGURES = {"accuracy": True, "log_loss": False, "auc": True}


def released_probabilities(
    validation: np.ndarray, validation_labels: np.ndarray, test: np.ndarray, calibrate: bool
) -> np.ndarray:
    """The test part's probabilities as a release would have them. Logits: float32 [N, K]."""
    temperature = fit_temperature(validation, validation_labels) if calibrate else 1.0
    return probabilities_at(test, temperature)


def difference(
    tuned: Sequence[np.ndarray], default: Sequence[np.ndarray], labels: np.ndarray, figure: str
) -> Estimate | None:
    """The figure of `tuned` less that of `default`, with a 95% interval; None where undefined.

    tuned, default: the probabilities of each seed's network, float32 [N, K], on the same rows.
    The interval is for other rows and other seeds: its variance is that of the rows' differences
    (each row's mean over the seeds, so the rows are paired) plus that of each recipe's seeds, less
    what rows and seeds do together, which is in both; the variance components of a two-way layout.
    Student's t with Welch and Satterthwaite's degrees of freedom. The area under the curve is no
    mean over rows: for it the rows' share is that of two independent samples (Hanley and McNeil
    1982), which is rather too much.
    """
    scores = [[_scores(answers, labels, figure) for answers in side] for side in (tuned, default)]
    if any(score is None for side in scores for score in side):
        return None
    sides: list[np.ndarray] = [np.stack(side) for side in scores]  # type: ignore[arg-type]
    seeds = [side.mean(axis=1) for side in sides]
    found = float(seeds[0].mean() - seeds[1].mean())
    parts = [
        (float(side.var(ddof=1)) / len(side), len(side) - 1) for side in seeds if len(side) > 1
    ]
    both = 0.0
    if figure == "auc":
        areas = [area_under_curve(side[0], labels) for side in (tuned, default)]
        variance = sum(standard_error(area) ** 2 for area in areas if area is not None)
        parts.append((variance, len(labels) - 1))
    else:
        paired = sides[0].mean(axis=0) - sides[1].mean(axis=0)
        parts.append((float(paired.var(ddof=1)) / len(paired), len(paired) - 1))
        both = sum(_interaction(side) / side.size for side in sides if len(side) > 1)
    half = _half_width(parts, both)
    return Estimate(value=found, low=found - half, high=found + half)


def _interaction(scores: np.ndarray) -> float:
    """The variance of what is neither the row's nor the seed's. scores: [seeds, rows]."""
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    seeds, rows = scores.shape
    return float((rest**2).sum()) / ((seeds - 1) * (rows - 1))


def _scores(probabilities: np.ndarray, labels: np.ndarray, figure: str) -> np.ndarray | None:
    """What the figure is the mean of: one for each row, or one for all."""
    if figure == "accuracy":
        return (decide(probabilities, 0.5) == labels).astype(np.float64)
    if figure == "log_loss":
        return log_losses(probabilities, labels)
    area = area_under_curve(probabilities, labels)
    return None if area is None else np.array([area.value])


def _half_width(parts: Sequence[tuple[float, int]], both: float) -> float:
    """Of the 95% interval of a sum with these (variance, degrees of freedom), less `both`."""
    from scipy.stats import t

    total = sum(variance for variance, _ in parts)
    if not total:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts if variance)
    # An estimate of a difference of variances may be too small, even negative.
    variance = max(total - both, *(variance for variance, _ in parts))
    return float(t.ppf(0.975, freedom)) * math.sqrt(variance)


def is_better(difference: Estimate, figure: str) -> bool | None:
    """Whether the first is better than the second; None where the interval holds 0."""
    low, high = difference.low, difference.high
    if not FIGURES[figure]:
        low, high = -high, -low
    return True if low > 0 else False if high < 0 else None
