"""Tables of every type of column, and what is counted of them against a profile."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from artifacts.drift import DriftCounts
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, TableInput
from artifacts.profile import ColumnProfile, column_profiles

SIZE = Column(name="size", missing="fill", low=0, high=1, typical=0)
MEMBER = BooleanColumn(name="member", missing="fill", typical=True)
COLOUR = CategoryColumn(name="colour", categories=("blue", "green", "red"), typical="red")
SEEN = DateColumn(
    name="seen", missing="fill", parts=("timestamp", "weekday"),
    low="2020-01-01", high="2021-01-01", typical="2020-06-01",
)  # fmt: skip
# One, one, one and two raw values: all that a layout has to tell apart.
SPEC = TableInput(columns=(MEMBER, SIZE, COLOUR, SEEN))
UNKNOWN = 3.0

DAY = 86_400.0
CELLS = st.tuples(
    st.sampled_from([0.0, 1.0, math.nan]),
    st.floats(allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0]),
    st.sampled_from([0.0, 1.0, 2.0, UNKNOWN, math.nan]),
    st.integers(0, 10_000) | st.just(math.nan),
)
TABLES = st.lists(CELLS, min_size=1, max_size=30).map(
    lambda rows: np.array([[*row[:3], row[3] * DAY, row[3] % 7] for row in rows])
)


def counted(profile: tuple[ColumnProfile, ...], spec: TableInput, *raw: np.ndarray) -> DriftCounts:
    counts = DriftCounts(profile, spec)
    for rows in raw:
        counts.add(rows)
    return counts


def moved(column: Column | CategoryColumn, then: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    """The figures of a table's only column."""
    spec = TableInput(columns=(column,))
    profile = column_profiles(np.reshape(then, (-1, 1)), spec)
    return counted(profile, spec, np.reshape(now, (-1, 1))).figures()[column.name]
