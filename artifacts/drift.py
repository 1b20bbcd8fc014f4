"""How far scored rows have moved from the training part, column by column.

Counts are all that is kept of the rows: those of several jobs add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts.cells import ColumnSpec
from artifacts.errors import DataError
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.profile import Bins, ColumnProfile, bin_of_index

# The index and its bounds are credit scoring's (Siddiqi, Credit Risk Scorecards, 2006).
MOVED, SHIFTED = 0.1, 0.25
# As is usual: an empty bin has a logarithm all the same, and the rarest ones weigh nothing.
LEAST_SHARE = 1e-4
# Of the normal distribution, passed once in a thousand times.
_QUANTILE = 3.0902
# A block and what is made of it should stay in a core's cache, and its columns be long.
_CELLS_AT_ONCE = 2**17


class DriftCounts:
    """How many rows fell into each bin of a profile. Without a profile, of nothing."""

    def __init__(self, profile: tuple[ColumnProfile, ...], spec: ImageInput | TableInput) -> None:
        """profile: a manifest's, made of `spec`; empty for pictures, and in older bundles."""
        self._profile = profile
        self._columns: tuple[ColumnSpec, ...] = ()
        if profile:
            assert isinstance(spec, TableInput)
            self._columns = spec.columns
        self._layout = _Layout(self._values())
        self._counts = np.zeros(self._layout.offsets[-1], dtype=np.int64)

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return int(self._of(0).sum()) if self._profile else 0

    def add(self, raw: np.ndarray) -> None:
        """Count rows of raw input, float64 [N, width], that can be answered."""
        if not self._profile:
            return
        width = len(self._layout.offsets) - 1
        assert raw.ndim == 2 and raw.shape[1] == width, raw.shape
        at_once = max(1, _CELLS_AT_ONCE // width)
        for start in range(0, len(raw), at_once):
            self._counts += self._layout.count(raw[start : start + at_once])

    def merge(self, other: DriftCounts) -> None:
        """Count the other's rows too. Raises DataError where its profile is another."""
        if other._profile != self._profile:
            raise DataError("drift: expected counts against the same profile, found another's")
        self._counts += other._counts

    def to_json(self) -> dict[str, list[list[int]]]:
        """The counts as a JSON object: by column, those of each raw value's bins."""
        found: dict[str, list[list[int]]] = {column.name: [] for column in self._columns}
        for index, (column, _) in enumerate(self._values()):
            found[column.name].append(self._of(index).tolist())
        return found

    @classmethod
    def from_json(
        cls,
        profile: tuple[ColumnProfile, ...],
        spec: ImageInput | TableInput,
        record: Any,
    ) -> DriftCounts:
        """What `to_json` gave. Raises DataError for what cannot be counts against this profile."""
        counts = cls(profile, spec)
        zeros = counts.to_json()
        if not isinstance(record, dict) or set(record) != set(zeros):
            found = list(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(f"drift: expected counts of the columns {list(zeros)}, found {found}")
        for name, expected in zeros.items():
            lengths = [len(part) for part in expected]
            if _lengths(record[name]) != lengths:
                raise DataError(
                    f"drift: column {name!r}: expected lists of {lengths} counts, found "
                    f"{str(record[name])[:60]}"
                )
        flat = [count for name in zeros for part in record[name] for count in part]
        counts._counts = np.array(flat, dtype=np.int64)
        rows = {int(counts._of(index).sum()) for index in range(len(counts._values()))}
        if len(rows) > 1:
            raise DataError(f"drift: expected as many rows in each column, found {sorted(rows)}")
        return counts

    def figures(self) -> dict[str, dict[str, Any]]:
        """How each column has moved, by its name; empty where no row was counted.

        psi: the population stability index over the profile's bins, missing values and, of a
        category, unknown ones, which are bins too: the sum of (now - then) ln(now / then) over
        their shares. That of an empty bin counts as half a row's, at most as the other side's, and
        each as at least LEAST_SHARE. Of a date, the largest of its parts', which `parts` has by
        name.
        verdict: "stable" while psi is below 0.1, "moved" up to 0.25, "shifted" above; "stable" also
        while psi is below `chance`, which about one in a thousand samples of so few rows, drawn as
        training's were, would exceed (Yurdakul, Statistical Properties of Population Stability
        Index, 2018: psi is then (1/rows + 1/training rows) times a chi-squared variable).
        missing, missing_in_training: shares without a value.
        unseen, unseen_in_training: of a category, shares of what is none of the known categories.
        outside: of a number, the share below training's lowest or above its highest value.
        """
        rows = self.rows
        if not rows:
            return {}
        found: dict[str, dict[str, Any]] = {}
        index = 0
        for column, profile in zip(self._columns, self._profile, strict=True):
            parts = [
                _moved(column, bins, profile, self._of(index + part))
                for part, bins in enumerate(profile.bins)
            ]
            counts, index = self._of(index), index + len(parts)
            psi, chance = max(parts)
            figures = {
                "verdict": _verdict(psi, chance),
                "psi": psi,
                "chance": chance,
                "missing": int(counts[0]) / rows,
                "missing_in_training": profile.missing,
            }
            if isinstance(column, DateColumn):
                figures["parts"] = dict(zip(column.parts, (part[0] for part in parts), strict=True))
            elif isinstance(column, CategoryColumn):
                figures["unseen"] = int(counts[-1]) / rows
                figures["unseen_in_training"] = profile.bins[0].shares[-1]
            elif isinstance(column, Column):
                figures["outside"] = int(counts[1] + counts[-1]) / rows
            found[column.name] = figures
        return found

    def _values(self) -> list[tuple[ColumnSpec, Bins]]:
        """Each raw value's column and bins."""
        pairs = zip(self._columns, self._profile, strict=True)
        return [(column, bins) for column, profile in pairs for bins in profile.bins]

    def _of(self, index: int) -> np.ndarray:
        """One raw value's counts, int64: of missing ones, then of each bin.

        Before and after a number's bins come those of what lies below and above its range.
        """
        return self._counts[self._layout.offsets[index] : self._layout.offsets[index + 1]]


class _Layout:
    """Where the counts of each raw value lie in one array, and how cells are counted.

    offsets: int64 [width + 1], where those of each start.
    """

    def __init__(self, values: Sequence[tuple[ColumnSpec, Bins]]) -> None:
        is_index = [isinstance(column, BooleanColumn | CategoryColumn) for column, _ in values]
        self.numbers = np.flatnonzero(np.logical_not(is_index))
        self.indices = np.flatnonzero(is_index)
        extra = np.where(is_index, 1, 3)
        sizes = extra + [len(bins.shares) for _, bins in values]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

        bins_of = [values[place][1] for place in self.numbers.tolist()]
        most = max((len(bins.edges) for bins in bins_of), default=0)
        # Infinity is exceeded by nothing: neither a bin too few nor a range of nothing counts.
        self.above = np.full((most + 1, len(bins_of), 1), np.inf)
        self.lows = np.full((len(bins_of), 1), np.inf)
        for row, bins in enumerate(bins_of):
            self.above[: len(bins.edges), row, 0] = bins.edges
            if bins.low is not None and bins.high is not None:
                self.lows[row], self.above[most, row] = bins.low, bins.high
        # Of each category's index, and before these of a missing one, where it counts.
        slots, starts = [], [0]
        for place in self.indices.tolist():
            column, bins = values[place]
            assert isinstance(column, BooleanColumn | CategoryColumn)
            counted = np.concatenate([[0], bin_of_index(column, bins) + 1])
            slots.append(self.offsets[place] + counted)
            starts.append(starts[-1] + len(counted))
        self.slots = np.concatenate(slots) if slots else np.zeros(0, dtype=np.int64)
        self.starts = np.array(starts[:-1], dtype=np.float64)[:, None]
        self.ends = np.array(starts[1:], dtype=np.float64)[:, None]

    def count(self, raw: np.ndarray) -> np.ndarray:
        """int64 [offsets[-1]] of some rows; raw: float64 [N, width]."""
        columns = np.ascontiguousarray(raw.T)
        places = []
        if len(self.numbers):
            numbers = columns if not len(self.indices) else columns[self.numbers]
            # NaN compares as false: 0 is missing, 1 below the range, 2 the first bin, ...
            code = (numbers == numbers).view(np.uint8)
            passed = numbers >= self.lows
            code += passed.view(np.uint8)
            for edges in self.above:
                np.greater(numbers, edges, out=passed)
                code += passed.view(np.uint8)
            places.append((code + self.offsets[self.numbers, None]).ravel())
        if len(self.indices):
            cells = columns[self.indices]
            at = np.where(np.isnan(cells), self.starts, self.starts + 1 + cells)
            assert (at >= self.starts).all() and (at < self.ends).all()
            places.append(self.slots[at.astype(np.int64)].ravel())
        total = np.zeros(self.offsets[-1], dtype=np.int64)
        for place in places:
            total += np.bincount(place, minlength=len(total))
        return total


def _moved(
    column: ColumnSpec, bins: Bins, profile: ColumnProfile, counts: np.ndarray
) -> tuple[float, float]:
    """psi and what it may be by chance."""
    then = [profile.missing, *bins.shares]
    now = counts.tolist()
    if not isinstance(column, BooleanColumn | CategoryColumn):
        missing, below, *within, above = now
        within[-1] += above
        if bins.edges and bins.edges[0] == bins.low:
            # The lowest value alone fills the first bin: one below it is no such value.
            then, now = [0.0, *then], [below, missing, *within]
        else:
            within[0] += below
            now = [missing, *within]
    rows = sum(now)
    psi = 0.0
    for count, share in zip(now, then, strict=True):
        before = _counted_as(share, count / rows, profile.rows)
        after = _counted_as(count / rows, share, rows)
        psi += (after - before) * math.log(after / before)
    return psi, _chance(rows, profile.rows, sum(share > 0 for share in then) - 1)


def _counted_as(share: float, other: float, rows: int) -> float:
    """A bin's share of so many rows, as the index takes it; other: the other side's."""
    return max(LEAST_SHARE, share or min(other, 0.5 / rows))


def _chance(rows: int, training_rows: int, freedom: int) -> float:
    """The chi-squared quantile is Wilson's and Hilferty's (1931)."""
    spread = 2 / (9 * max(1, freedom))
    quantile = max(1, freedom) * (1 - spread + _QUANTILE * math.sqrt(spread)) ** 3
    return (1 / rows + 1 / training_rows) * quantile


def _verdict(psi: float, chance: float) -> str:
    if psi < max(MOVED, chance):
        return "stable"
    return "moved" if psi <= SHIFTED else "shifted"


def _lengths(parts: Any) -> list[int] | None:
    """How many counts each part has; None for what holds anything else."""
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return None
    counts = [count for part in parts for count in part]
    if not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        return None
    return [len(part) for part in parts]
