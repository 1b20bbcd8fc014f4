"""Cells -> arrays: the one copy of how a table's cells become the graph's raw input.

Training, HTTP and offline scoring all call it. Filling and scaling are inside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts.errors import DataError
from artifacts.manifest import Column, TableInput

# A cell of a text file that says that there is no value, compared without surrounding blanks.
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


def parse_number(text: str) -> float:
    """A text cell as a float, NaN where it stands for a missing value.

    Raises DataError for anything else that is not a finite number.
    """
    stripped = text.strip()
    if stripped.lower() in MISSING_TEXTS:
        return float("nan")
    try:
        value = float(stripped)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or "_" in stripped or not stripped.isascii():
        shown = stripped if len(stripped) <= 40 else stripped[:37] + "..."
        raise DataError(f"expected a number, found {shown!r}")
    return value


def bad_cells(column: Column, values: np.ndarray) -> dict[int, str]:
    """What is wrong with the cells of one column, by row: nothing for most.

    values: float64 [N], NaN where a cell is missing.
    """
    bad: dict[int, str] = {}
    finite = np.isfinite(values)
    if finite.all():
        return bad
    for row in np.flatnonzero(~finite):
        if np.isinf(values[row]):
            bad[int(row)] = f"column {column.name!r}: expected a finite number, found infinity"
        elif column.missing == "reject":
            bad[int(row)] = (
                f"column {column.name!r}: the value is missing, "
                "and this column had none missing in training"
            )
    return bad


def check_columns(found: Sequence[str], spec: TableInput, *, extra_allowed: bool) -> None:
    """Raise DataError unless `found` has each column of `spec` once, naming those that differ."""
    expected = [column.name for column in spec.columns]
    problems = []
    twice = sorted({name for name in found if found.count(name) > 1} & set(expected))
    if twice:
        problems.append(f"column twice: {_names(twice)}")
    missing = [name for name in expected if name not in found]
    if missing:
        problems.append(f"missing column: {_names(missing)}")
    extra = [name for name in found if name not in expected]
    if extra and (missing or not extra_allowed):
        problems.append(f"unknown column: {_names(extra)}")
    if problems and (missing or twice or not extra_allowed):
        raise DataError("; ".join(problems))


def encode_columns(
    columns: Sequence[Sequence[str | float | None] | np.ndarray], spec: TableInput
) -> tuple[np.ndarray, dict[int, str]]:
    """A table as raw input, with the rows that cannot be.

    columns: one for each of spec.columns, in that order: a float64 array (NaN for missing), or
    cells that are text, numbers or None.
    Returns float64 [N, D] and, for each bad row, what is wrong with it (its raw input is
    meaningless then).
    """
    encoded: list[np.ndarray] = []
    bad: dict[int, str] = {}
    for column, cells in zip(spec.columns, columns, strict=True):
        values = cells if isinstance(cells, np.ndarray) else np.empty(len(cells))
        if not isinstance(cells, np.ndarray):
            for row, cell in enumerate(cells):
                try:
                    if cell is None:
                        values[row] = np.nan
                    else:
                        values[row] = parse_number(cell) if isinstance(cell, str) else cell
                except DataError as error:
                    values[row] = 0.0
                    bad.setdefault(row, f"column {column.name!r}: {error}")
        for row, reason in bad_cells(column, values).items():
            bad.setdefault(row, reason)
        encoded.append(values)
    return np.stack(encoded, axis=1).astype(np.float64, copy=False), bad


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
