"""The probability from which the second of two labels is answered."""

from __future__ import annotations

import numpy as np

from artifacts.errors import DataError
from training.recipe import ExportConfig

# Of one label, to choose by: 3 of 600 gave an "optimum" that answered it nearly always.
_LEAST_ROWS = 10


def check_threshold(config: ExportConfig, labels: tuple[str, ...]) -> None:
    """Raise DataError where a threshold is asked for and there are more than two labels."""
    if config.threshold != 0.5 and len(labels) != 2:
        raise DataError(
            f"export.threshold: expected 0.5 for {len(labels)} labels, as a threshold is between "
            f"two, found {config.threshold!r}"
        )


def choose_threshold(
    config: ExportConfig, probabilities: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> float:
    """The recipe's threshold, or the best one by the figure that it names.

    probabilities: float32 [N, K], of the validation part; labels: int64 [N]; names: the K labels.
    Candidates lie between neighbouring probabilities; of equally good ones the nearest to 0.5 is
    taken, as the shortest decimal near the middle of its gap.
    Raises DataError where there are not two labels, or one of them has hardly a row.
    """
    check_threshold(config, names)
    if not isinstance(config.threshold, str):
        return config.threshold
    positives = int(labels.sum())
    for name, rows in zip(names, (len(labels) - positives, positives), strict=True):
        if rows < _LEAST_ROWS:
            raise DataError(
                f"export.threshold: {config.threshold!r} needs at least {_LEAST_ROWS} validation "
                f"rows of each label, found {rows} of {name}: fewer give a threshold by chance; a "
                "larger data.val_fraction, or a number"
            )
    scores, groups = np.unique(probabilities[:, 1].astype(np.float64), return_inverse=True)
    # Answered when the threshold lies below the i-th score: the rows from there on, i = 0 .. S.
    right = np.bincount(groups, labels == 1, minlength=len(scores))
    wrong = np.bincount(groups, labels == 0, minlength=len(scores))
    hits = np.append(np.cumsum(right[::-1])[::-1], 0)
    alarms = np.append(np.cumsum(wrong[::-1])[::-1], 0)
    if config.threshold == "f1":
        figure = 2 * hits / (hits + alarms + positives)
    else:
        figure = hits / positives + 1 - alarms / (len(labels) - positives)
    edges = np.concatenate([[0.0], scores, [1.0]])
    # A probability of exactly 0 or 1 leaves no room for a threshold beyond it.
    figure = np.where(edges[:-1] < edges[1:], figure, -np.inf)
    best = np.flatnonzero(figure >= figure.max() - 1e-12)
    gaps = [(float(edges[place]), float(edges[place + 1])) for place in best]
    low, high = min(gaps, key=lambda gap: max(gap[0] - 0.5, 0.5 - gap[1], 0.0))
    return 0.5 if low < 0.5 < high else _short_between(low, high)


def _short_between(low: float, high: float) -> float:
    middle = low + (high - low) / 2
    for digits in range(1, 17):
        short = round(middle, digits)
        if abs(short - middle) <= (high - low) / 4:
            return short
    return middle
