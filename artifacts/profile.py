"""What the columns of the training part looked like: what `artifacts.drift` measures against.

Part of a table model's manifest.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from artifacts.cells import ColumnSpec
from artifacts.inputs import BooleanColumn, CategoryColumn, Frozen, ImageInput, TableInput

_BINS = 10
# A vocabulary may have 65,536 categories, and a manifest of many such columns must stay small.
MOST_CATEGORIES = 128

Share = Annotated[float, Field(ge=0, le=1)]


class Bins(Frozen):
    """How one value of the training rows' raw input was distributed.

    shares: of all training rows, to six digits, by bin; with the missing share they sum to 1.

    Of a number, low and high are its range (None where all were missing), and `edges` lie between
    the bins, ascending: values up to the first edge, those above it and up to the second, ...,
    those above the last.
    Of a boolean the bins are false and true; of a category the known ones by index, and last, in
    one bin, those that are none of them. kept: where too many are known, the indices of those with
    a bin each, ascending; after them comes one bin for the other known ones.
    """

    low: float | None = None
    high: float | None = None
    edges: tuple[float, ...] = Field(default=(), max_length=100)
    kept: tuple[Annotated[int, Field(ge=0)], ...] = ()
    shares: tuple[Share, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _numbers_have_a_range(self) -> Bins:
        if (self.low is None) != (self.high is None):
            raise ValueError("bins: expected both low and high, or neither")
        for name, values in (("edges", self.edges), ("kept", self.kept)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"bins: expected ascending {name}")
        return self


class ColumnProfile(Frozen):
    """One column of the training part.

    rows: how many there were. missing: their share without a value. bins: one for each of the
    column's raw values, which is one, or one for each part of a date.
    """

    name: str
    rows: int = Field(ge=1)
    missing: Share
    bins: tuple[Bins, ...] = Field(min_length=1)


def column_profiles(raw: np.ndarray, spec: TableInput) -> tuple[ColumnProfile, ...]:
    """The profiles of spec.columns, in their order, of at least one row.

    raw: float64 [N, width] as `artifacts.cells` encodes it. The same rows in another order have
    the same profiles.
    """
    assert raw.shape[1:] == spec.shape and len(raw), raw.shape
    profiles = []
    start = 0
    for column in spec.columns:
        values = raw[:, start : start + column.width]
        start += column.width
        missing = int(np.isnan(values[:, 0]).sum())
        profiles.append(
            ColumnProfile(
                name=column.name,
                rows=len(raw),
                missing=_shares(np.array([missing]), len(raw))[0],
                bins=tuple(_bins(column, value) for value in values.T),
            )
        )
    return tuple(profiles)


def check_profile(profile: tuple[ColumnProfile, ...], spec: ImageInput | TableInput) -> None:
    """Raise ValueError unless there is no profile, or it is one of these columns."""
    if not profile:
        return
    if spec.kind != "table":
        raise ValueError("profile: it is for table input")
    expected = [column.name for column in spec.columns]
    names = [column.name for column in profile]
    if names != expected:
        raise ValueError(f"profile: expected the columns {expected}, found {names}")
    for column, found in zip(spec.columns, profile, strict=True):
        expected_shares = [_bins_expected(column, bins) for bins in found.bins]
        shares = [len(bins.shares) for bins in found.bins]
        if len(shares) != column.width or shares != expected_shares:
            raise ValueError(
                f"profile: column {column.name!r}: expected {column.width} distributions, of "
                f"{expected_shares} shares, found {shares}"
            )


def bin_of_index(column: BooleanColumn | CategoryColumn, bins: Bins) -> np.ndarray:
    """Which bin each raw value counts in, from 0 to the one that stands for unknown categories.

    int64 [2] for a boolean, [number of categories + 1] for a category.
    """
    if isinstance(column, BooleanColumn):
        return np.arange(2)
    known = len(column.categories)
    if not bins.kept:
        return np.arange(known + 1)
    place = np.full(known + 1, len(bins.kept))
    place[list(bins.kept)] = np.arange(len(bins.kept))
    place[known] = len(bins.kept) + 1
    return place


def _bins_expected(column: ColumnSpec, bins: Bins) -> int:
    if isinstance(column, BooleanColumn | CategoryColumn):
        known = 2 if isinstance(column, BooleanColumn) else len(column.categories)
        if bins.kept and (known <= len(bins.kept) or bins.kept[-1] >= known):
            raise ValueError(f"profile: column {column.name!r}: kept: expected some of its indices")
        return int(bin_of_index(column, bins)[-1]) + 1
    return len(bins.edges) + 1


def _bins(column: ColumnSpec, values: np.ndarray) -> Bins:
    """values: float64 [N], NaN where missing."""
    known = values[~np.isnan(values)]
    if isinstance(column, BooleanColumn | CategoryColumn):
        return _index_bins(column, known.astype(np.int64), len(values))
    if not len(known):
        return Bins(shares=(0.0,))
    # Minus zero would be an edge or not by the order of the rows.
    ordered = np.sort(known) + 0.0
    # The least values that one, two, ... tenths of the rows do not exceed.
    tenths = -(-np.arange(1, _BINS) * len(ordered) // _BINS)
    edges = np.unique(ordered[tenths - 1])
    up_to = np.searchsorted(ordered, edges, side="right")
    return Bins(
        low=float(ordered[0]),
        high=float(ordered[-1]),
        edges=tuple(edges.tolist()),
        shares=_shares(np.diff(up_to, prepend=0, append=len(ordered)), len(values)),
    )


def _index_bins(column: BooleanColumn | CategoryColumn, indices: np.ndarray, rows: int) -> Bins:
    bins = Bins(shares=(0.0,))
    if isinstance(column, CategoryColumn) and len(column.categories) > MOST_CATEGORIES:
        counts = np.bincount(indices, minlength=len(column.categories) + 1)[:-1]
        most = np.argsort(-counts, kind="stable")[:MOST_CATEGORIES]
        bins = Bins(kept=tuple(np.sort(most).tolist()), shares=(0.0,))
    place = bin_of_index(column, bins)
    counts = np.bincount(place[indices], minlength=place[-1] + 1)
    return Bins(kept=bins.kept, shares=_shares(counts, rows))


def _shares(counts: np.ndarray, rows: int) -> tuple[float, ...]:
    return tuple(float(f"{count / rows:.6g}") for count in counts.tolist())
