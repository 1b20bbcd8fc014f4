"""Cells -> arrays: the one copy of how a table's cells become the graph's raw input.

Training, HTTP and offline scoring all call it. Filling, scaling and one-hot encoding are inside
the graph; outside it, here, are parsing, category -> index, and dates -> parts.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, DatePart, TableInput

# A cell of a text file that says that there is no value, compared without surrounding blanks.
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_BOOLEANS = {"true": 1.0, "false": 0.0}
_WHOLE = re.compile(r"(-?\d+)\.0+")
_EPOCH = datetime.datetime(1970, 1, 1)

# As it comes from a JSON body, a text file, an Arrow column or a caller's list.
Cell: TypeAlias = str | float | bool | datetime.date | None
ColumnSpec: TypeAlias = Column | BooleanColumn | CategoryColumn | DateColumn


def is_missing(cell: Cell) -> bool:
    """Whether a cell says that there is no value: None, NaN, or one of MISSING_TEXTS."""
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING_TEXTS
    return cell is None or cell != cell


def parse_number(text: str) -> float:
    """A text cell as a float, NaN where it stands for a missing value.

    Raises DataError for anything else that is not a finite number.
    """
    stripped = text.strip()
    if is_missing(stripped):
        return float("nan")
    try:
        value = float(stripped)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value) or "_" in stripped or not stripped.isascii():
        raise DataError(f"expected a number, found {_short(stripped)}")
    return value


def category_text(cell: Cell) -> str | None:
    """A cell as the text that names its category, None where it is missing.

    The same value has the same text wherever it comes from: 3, 3.0, "3", " 3.0 " are "3"; true
    and "True" are "true".
    """
    if is_missing(cell):
        return None
    if isinstance(cell, bool | np.bool_):
        return "true" if cell else "false"
    text = str(cell).strip()
    if text.lower() in _BOOLEANS:
        return text.lower()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def parse_boolean(cell: Cell) -> float:
    """1.0 for true, 0.0 for false, NaN where missing; texts, numbers 0 and 1 too.

    Raises DataError for anything else.
    """
    text = category_text(cell)
    if text is None:
        return float("nan")
    value = _BOOLEANS.get(text, {"1": 1.0, "0": 0.0}.get(text))
    if value is None:
        raise DataError(f"expected true or false, found {_short(text)}")
    return value


def parse_date(cell: Cell) -> datetime.datetime | None:
    """A date or time (ISO 8601, or Python's) in UTC without a zone, None where missing.

    Raises DataError for anything else.
    """
    if isinstance(cell, datetime.datetime):
        moment = cell
    elif isinstance(cell, datetime.date):
        moment = datetime.datetime(cell.year, cell.month, cell.day)
    elif is_missing(cell):
        return None
    else:
        try:
            # A bare number such as 20240131 is more often a code than a date.
            text = str(cell).strip()
            moment = datetime.datetime.fromisoformat("" if text.isdigit() else text)
        except ValueError as error:
            message = f"expected a date such as 2026-01-31, found {_short(str(cell).strip())}"
            raise DataError(message) from error
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return moment


def date_parts(moment: datetime.datetime, parts: Sequence[DatePart]) -> list[float]:
    """The numbers that stand for a date, in the order of `parts`."""
    seconds = (moment - _EPOCH) / datetime.timedelta(seconds=1)
    values = {
        "timestamp": seconds,
        "year": moment.year,
        "month": moment.month,
        "day": moment.day,
        "weekday": moment.weekday(),
        "hour": moment.hour,
    }
    return [float(values[part]) for part in parts]


def encode_column(
    column: ColumnSpec, cells: Sequence[Cell] | np.ndarray
) -> tuple[np.ndarray, dict[int, str]]:
    """One column as raw input, with the rows that cannot be.

    cells: a float64 array (NaN for missing; numbers and booleans only), or cells of any kind.
    Returns float64 [N, column.width], NaN where a cell is missing, and what is wrong by row.
    """
    bad: dict[int, str] = {}
    if isinstance(cells, np.ndarray) and isinstance(column, Column):
        values = cells.astype(np.float64, copy=False).reshape(-1, 1)
    else:
        encode = _cell_encoder(column)
        values = np.full((len(cells), column.width), np.nan)
        for row, cell in enumerate(cells):
            try:
                values[row] = encode(cell)
            except DataError as error:
                # Not NaN: it is not missing, and a row has one reason.
                values[row] = 0.0
                bad[row] = f"column {column.name!r}: {error}"
    finite = np.isfinite(values).all(axis=1)
    if finite.all():
        return values, bad
    for row in np.flatnonzero(~finite).tolist():
        if np.isinf(values[row]).any():
            bad[row] = f"column {column.name!r}: expected a finite number, found infinity"
        elif column.missing == "reject":
            bad[row] = (
                f"column {column.name!r}: the value is missing, "
                "and this column had none missing in training"
            )
    return values, bad


def _cell_encoder(column: ColumnSpec) -> Any:
    """A function of one cell to the column's raw values."""
    if isinstance(column, Column):
        return lambda cell: parse_number(cell) if isinstance(cell, str) else _number(cell)
    if isinstance(column, BooleanColumn):
        return parse_boolean
    if isinstance(column, CategoryColumn):
        index = {text: position for position, text in enumerate(column.categories)}

        def encode(cell: Cell) -> float:
            text = category_text(cell)
            return float("nan") if text is None else float(index.get(text, len(index)))

        return encode
    parts = column.parts

    def encode_date(cell: Cell) -> list[float]:
        moment = parse_date(cell)
        return [float("nan")] * len(parts) if moment is None else date_parts(moment, parts)

    return encode_date


def _number(cell: Any) -> float:
    if cell is None:
        return float("nan")
    if isinstance(cell, datetime.date):
        raise DataError(f"expected a number, found {_short(str(cell))}")
    return float(cell)


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
    columns: Sequence[Sequence[Cell] | np.ndarray], spec: TableInput
) -> tuple[np.ndarray, dict[int, str]]:
    """A table as raw input, with the rows that cannot be.

    columns: one for each of spec.columns, in that order, as `encode_column` takes it.
    Returns float64 [N, *spec.shape] and, for each bad row, what is wrong with it (its raw input
    is meaningless then).
    """
    encoded: list[np.ndarray] = []
    bad: dict[int, str] = {}
    for column, cells in zip(spec.columns, columns, strict=True):
        values, reasons = encode_column(column, cells)
        encoded.append(values)
        for row, reason in reasons.items():
            bad.setdefault(row, reason)
    return np.concatenate(encoded, axis=1), bad


def decode_row(raw: np.ndarray, spec: TableInput) -> dict[str, Any]:
    """One row of raw input, float64 [spec.shape], as cells that `encode_columns` gives back.

    A category that is not known becomes a text that is none of the known ones.
    """
    cells: dict[str, Any] = {}
    start = 0
    for column in spec.columns:
        values = raw[start : start + column.width].tolist()
        start += column.width
        if np.isnan(values).any():
            cells[column.name] = None
        elif isinstance(column, Column):
            cells[column.name] = values[0]
        elif isinstance(column, BooleanColumn):
            cells[column.name] = bool(values[0])
        elif isinstance(column, CategoryColumn):
            index = int(values[0])
            known = index < len(column.categories)
            cells[column.name] = column.categories[index] if known else _unknown(column)
        else:
            cells[column.name] = _date_text(column, values)
    return cells


def _unknown(column: CategoryColumn) -> str:
    text = "other"
    while text in column.categories:
        text += "_"
    return text


def _date_text(column: DateColumn, values: list[float]) -> str:
    seconds = dict(zip(column.parts, values, strict=True)).get("timestamp", 0.0)
    moment = _EPOCH + datetime.timedelta(seconds=seconds)
    return moment.date().isoformat() if "hour" not in column.parts else moment.isoformat()


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
