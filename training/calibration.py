"""Temperature scaling, and how far probabilities can be taken at their word.

Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from artifacts.estimates import (
    BINS,
    bin_places,
    brier_scores,
    calibration_error,
    log_losses,
    mean_interval,
    reliability,
)
from artifacts.manifest import CalibrationFigures, ReliabilityBin

LEAST_ROWS = 50
LOWEST, HIGHEST = 1 / 16, 16.0
_BITS = 12


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [1/16, 16] that suits rows best that were not trained on.

    logits: float32 [N, K]; labels: int64 [N]. It minimises the negative log-likelihood, which is
    convex in 1/T, in float64. N rows that are all right ask for a temperature of 0: then each
    counts as 1/(N+2) of a row of the next probable label (after Platt 1999). Fewer than 50 rows,
    and rows whose likelihood no other temperature improves, give 1. The number has 12 significant
    bits, so that JSON, Python and the graph's float32 have the same.
    """
    if len(labels) < LEAST_ROWS:
        return 1.0
    from scipy.optimize import brentq

    centred = logits.astype(np.float64)
    centred -= centred.max(axis=1, keepdims=True)
    own = centred[np.arange(len(labels)), labels]
    next_best = np.partition(centred, -2, axis=1)[:, -2]
    missed = 0.0 if (own < 0).any() else 1 / (len(labels) + 2)
    wanted = float(((1 - missed) * own + missed * next_best).mean())

    def slope(sharpness: float) -> float:
        """The derivative by 1/T; it rises."""
        weights = np.exp(sharpness * centred)
        expected = np.einsum("nk,nk->n", weights, centred) / weights.sum(axis=1)
        return float(expected.mean()) - wanted

    if slope(1 / HIGHEST) >= 0:
        temperature = HIGHEST
    elif slope(1 / LOWEST) <= 0:
        temperature = LOWEST
    else:
        temperature = _rounded(1 / brentq(slope, 1 / HIGHEST, 1 / LOWEST, xtol=1e-6))

    def loss(temperature: float) -> float:
        return float((np.log(np.exp(centred / temperature).sum(axis=1)) - own / temperature).mean())

    return temperature if loss(temperature) < loss(1.0) else 1.0


def probabilities_at(logits: np.ndarray, temperature: float) -> np.ndarray:
    """What the deployed graph makes of the network's logits: float32 [N, K], as `logits` is."""
    return torch.softmax(torch.from_numpy(logits) / temperature, dim=1).numpy()


def calibration_figures(
    probabilities: np.ndarray, labels: np.ndarray, *, keep_bins: bool
) -> CalibrationFigures:
    """ECE, log loss and Brier score of probabilities, float32 [N, K]; labels: int64 [N].

    torchmetrics gives rows with a confidence of exactly 1 a bin of their own; here they are in the
    last one, as in the paper.
    """
    bins = reliability_bins(probabilities, labels)
    return CalibrationFigures(
        ece=calibration_error(bins),
        log_loss=mean_interval(log_losses(probabilities, labels)),
        brier=mean_interval(brier_scores(probabilities, labels)),
        bins=bins if keep_bins else (),
    )


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """The 15 bins (0, 1/15], ... (14/15, 1] of the most probable label's probability."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    place = bin_places(confidence)
    return reliability(
        np.bincount(place, minlength=BINS),
        np.bincount(place, confidence, minlength=BINS),
        np.bincount(place, probabilities.argmax(axis=1) == labels, minlength=BINS),
    )


def _rounded(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, _BITS)), exponent - _BITS)
