"""How good a scoring job's answers are, where its rows' true labels are known.

Counts and sums of whole numbers in bounded memory: of any number of rows, however they were cut
into chunks and in whatever order those were added or merged, bit for bit the same figures.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.estimates import (
    BINS,
    MOST_CONFUSED,
    bin_places,
    brier_scores,
    calibration_error,
    confusion_matrix,
    label_counts,
    log_losses,
    metrics_of,
    normal_interval,
    reliability,
)
from artifacts.manifest import CalibrationFigures, Estimate, Metrics
from serving.scoring.ranking import Ranking
from serving.scoring.true_labels import MISSING, UNKNOWN

_FORMAT = 1
# Probabilities looked at together: what is made of them stays in a core's cache.
_AT_ONCE = 2**16
_UNIT_BITS = 48
_CONFIDENCE_BITS = 32
_MOST_NAMES = 1000
_LONGEST_NAME = 80


class TargetTally:
    """What is counted of answers beside true labels.

    unlabelled: rows without a true label. unknown: rows whose label the model does not know; it
    cannot have answered them rightly, but what it says of the labels that it knows is not worse
    for them, so they are counted apart and in no figure. undefined: rows that have a known label
    but a probability that is no number; they too are in no figure. rows: all others.
    """

    def __init__(self, labels: tuple[str, ...], threshold: float = 0.5) -> None:
        """labels: the model's, K >= 2. threshold: as in `decide`."""
        self.labels, self.threshold = labels, threshold
        self.unlabelled = self.unknown = self.undefined = 0
        self._unknown_names: dict[str, int] = {}
        self._losses, self._briers = _Moments(), _Moments()
        classes = len(labels)
        # The confusion matrix; of very many labels rows answered rightly, of it, and answered it.
        self._answers = np.zeros((classes if self._confused else 3, classes), dtype=np.int64)
        # In each bin of confidence: rows, sum of confidences in units of 2^-32, right answers.
        self._bins = np.zeros((3, BINS), dtype=np.int64)
        self._ranking = Ranking(classes)

    @property
    def rows(self) -> int:
        """Those that the figures are of."""
        return int(self._bins[0].sum())

    @property
    def _confused(self) -> bool:
        return len(self.labels) <= MOST_CONFUSED

    def add(
        self,
        probabilities: np.ndarray,
        true: np.ndarray,
        unknown: Mapping[str, int] | None = None,
    ) -> None:
        """Count rows: probabilities, float32 [N, K]; true, int64 [N] and unknown: `true_labels`."""
        assert probabilities.shape == (len(true), len(self.labels))
        self.unlabelled += int(np.count_nonzero(true == MISSING))
        self.unknown += int(np.count_nonzero(true == UNKNOWN))
        self._name(unknown or {})
        known = true >= 0
        if not known.all():
            probabilities, true = probabilities[known], true[known]
        if not np.isfinite(probabilities).all():
            finite = np.isfinite(probabilities).all(axis=1)
            self.undefined += int(np.count_nonzero(~finite))
            probabilities, true = probabilities[finite], true[finite]
        step = max(1, _AT_ONCE // len(self.labels))
        for start in range(0, len(true), step):
            self._add(probabilities[start : start + step], true[start : start + step])

    def _add(self, probabilities: np.ndarray, true: np.ndarray) -> None:
        classes = len(self.labels)
        answered = decide(probabilities, self.threshold)
        if self._confused:
            self._answers += confusion_matrix(answered, true, classes)
        else:
            self._answers += np.stack(label_counts(answered, true, classes))
        self._losses.add(log_losses(probabilities, true))
        self._briers.add(brier_scores(probabilities, true))
        top = answered if self.threshold == 0.5 else probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(true)), top].astype(np.float64)
        place = bin_places(confidence)
        # Whole numbers below 2^53: a sum of doubles that is exact.
        parts = np.rint(confidence * 2.0**_CONFIDENCE_BITS)
        self._bins[0] += np.bincount(place, minlength=BINS)
        self._bins[1] += np.bincount(place, parts, minlength=BINS).astype(np.int64)
        self._bins[2] += np.bincount(place[top == true], minlength=BINS)
        self._ranking.add(probabilities, true)

    def merge(self, other: TargetTally) -> None:
        """Count the other's rows too; it is of the same model."""
        assert (self.labels, self.threshold) == (other.labels, other.threshold)
        self.unlabelled += other.unlabelled
        self.unknown += other.unknown
        self.undefined += other.undefined
        self._name(other._unknown_names)
        self._losses.merge(other._losses)
        self._briers.merge(other._briers)
        self._answers += other._answers
        self._bins += other._bins
        self._ranking.merge(other._ranking)

    def _name(self, unknown: Mapping[str, int]) -> None:
        for name, rows in unknown.items():
            short = name[:_LONGEST_NAME]
            self._unknown_names[short] = self._unknown_names.get(short, 0) + rows
        if len(self._unknown_names) > _MOST_NAMES:
            # By name, not by count: so a kept one was never dropped before, in whatever order.
            kept = heapq.nsmallest(_MOST_NAMES, self._unknown_names)
            self._unknown_names = {name: self._unknown_names[name] for name in kept}

    def unknown_names(self, most: int = 5) -> dict[str, int]:
        """The most frequent labels that the model does not know, with their rows.

        Of more than 1,000 different ones, those of the first 1,000 in alphabetical order; names
        are cut at 80 characters.
        """
        ranked = sorted(self._unknown_names.items(), key=lambda item: (-item[1], item[0]))
        return dict(ranked[:most])

    def metrics(self) -> Metrics | None:
        """As training measures a part; None without a row.

        All but AUC and average precision are exact; those are of probabilities in fine bins, whose
        error `serving.scoring.ranking` tells.
        """
        if not self.rows:
            return None
        confusion = self._answers if self._confused else None
        return metrics_of(
            confusion=confusion,
            label_counts=(
                tuple(self._answers)
                if confusion is None
                else (confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0))
            ),
            log_loss=self._losses.estimate(self.rows),
            auc=self._ranking.area(),
            average_precision=self._ranking.average_precision(),
            names=self.labels,
        )

    def auc_within(self) -> float | None:
        """How far the AUC of `metrics` is from the exact one at most; None where there is none."""
        return self._ranking.auc_within()

    def calibration(self) -> CalibrationFigures | None:
        """With the bins; None without a row."""
        if not self.rows:
            return None
        rows, confidences, hits = self._bins
        bins = reliability(rows, confidences / 2.0**_CONFIDENCE_BITS, hits)
        return CalibrationFigures(
            ece=calibration_error(bins),
            log_loss=self._losses.estimate(self.rows),
            brier=self._briers.estimate(self.rows),
            bins=bins,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, for an .npz file: plain arrays, of the curves only the bins that hold rows."""
        about = {
            "format": _FORMAT,
            "labels": self.labels,
            "threshold": self.threshold,
            "unlabelled": self.unlabelled,
            "unknown": self.unknown,
            "undefined": self.undefined,
            "unknown_names": self._unknown_names,
            # JSON's numbers have as many digits as they need.
            "losses": (self._losses.total, self._losses.squares),
            "briers": (self._briers.total, self._briers.squares),
        }
        ranking = {f"ranking_{name}": array for name, array in self._ranking.to_arrays().items()}
        return {
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
            "answers": self._answers,
            "bins": self._bins,
            **ranking,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TargetTally:
        """What `to_arrays` was made of. Raises DataError for what another release wrote."""
        about: dict[str, Any] = json.loads(arrays["about"].tobytes())
        if about["format"] != _FORMAT:
            raise DataError(f"tally: expected format {_FORMAT}, found {about['format']}")
        tally = cls(tuple(about["labels"]), about["threshold"])
        for name in ("unlabelled", "unknown", "undefined"):
            setattr(tally, name, about[name])
        tally._unknown_names = about["unknown_names"]
        tally._losses, tally._briers = _Moments(*about["losses"]), _Moments(*about["briers"])
        tally._answers += arrays["answers"]
        tally._bins += arrays["bins"]
        ranking = {name: arrays[f"ranking_{name}"] for name in ("places", "all", "own")}
        tally._ranking = Ranking.from_arrays(len(tally.labels), ranking)
        return tally


class _Moments:
    """The sum of numbers from 0 to 100 and of their squares, as whole numbers of 2^-48."""

    def __init__(self, total: int = 0, squares: int = 0) -> None:
        self.total, self.squares = total, squares

    def add(self, values: np.ndarray) -> None:
        self.total += _units(values)
        self.squares += _units(values * values)

    def merge(self, other: _Moments) -> None:
        self.total += other.total
        self.squares += other.squares

    def estimate(self, rows: int) -> Estimate:
        """The mean, as `mean_interval` has it of the values themselves."""
        # Whole numbers to the end: nothing cancels.
        spread = (rows * self.squares << _UNIT_BITS) - self.total**2
        variance = max(0, spread) / (max(1, rows * (rows - 1)) << 2 * _UNIT_BITS)
        return normal_interval(self.total / (rows << _UNIT_BITS), math.sqrt(variance), rows)


def _units(values: np.ndarray) -> int:
    """The sum, each rounded to 2^-48: float64 [N] from 0 to 10,000, N < 2^31."""
    units = np.rint(values * 2.0**_UNIT_BITS).astype(np.int64)
    return (int((units >> 32).sum()) << 32) + int((units & 0xFFFFFFFF).sum())
