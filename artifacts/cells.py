"""Cells -> arrays: the one copy of how a table's cells become the graph's raw input.

Training, HTTP and offline scoring all call it. Filling, scaling and one-hot encoding are inside
the graph; outside it, here, are parsing, category -> index, and dates -> parts.

The same cell is the same raw input whichever way it comes: as text, JSON, Arrow, Python's or
numpy's. What a column cannot hold is an error of its row, never guessed at: a boolean is not a
number, and a date is not a category.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, DatePart, TableInput

# A cell of a text file that says that there is no value, compared without surrounding blanks.
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_BOOLEANS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
# A number by JSON's grammar: "007" and "+49" are texts.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_EPOCH = datetime.datetime(1970, 1, 1)

# As it comes from a JSON body, a text file, an Arrow column or a caller's list.
Cell: TypeAlias = str | float | bool | Decimal | datetime.date | np.generic | None
ColumnSpec: TypeAlias = Column | BooleanColumn | CategoryColumn | DateColumn


def is_missing(cell: Cell) -> bool:
    """Whether a cell says that there is no value: None, NaN, NaT, or one of MISSING_TEXTS."""
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING_TEXTS
    # pandas.NA answers no comparison.
    if cell is None or type(cell).__name__ == "NAType":
        return True
    if isinstance(cell, Decimal):
        return cell.is_nan()
    return isinstance(cell, float | datetime.date | np.generic) and bool(cell != cell)


def parse_number(cell: Cell) -> float:
    """A number, or a text of one, as the nearest float; NaN where it is missing.

    Raises DataError for anything else, and for a text that is not a finite number.
    """
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        text = cell.strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and "_" not in text and text.isascii():
            return value
    elif isinstance(cell, int | float | Decimal | np.integer | np.floating) and not _is_boolean(
        cell
    ):
        try:
            return float(cell)
        except OverflowError:
            pass
    raise DataError(f"expected a number, found {_short(cell)}")


def category_text(cell: Cell) -> str | None:
    """A cell as the text that names its category, None where it is missing.

    A text stands without surrounding blanks; a boolean, and a text of one, is "true" or "false".
    A number, and a text that JSON calls a number, has the one text of its value: 3, 3.0, "3" and
    " 3.0 " are "3". A float32 is what it is written as: 0.1, not 0.10000000149011612.
    Raises DataError for anything else.
    """
    if is_missing(cell):
        return None
    if _is_boolean(cell):
        return "true" if cell else "false"
    if isinstance(cell, float | np.floating):
        text = (
            str(np.float32(cell))
            if isinstance(cell, np.float16 | np.float32)
            else repr(float(cell))
        )
        return str(int(cell)) if float(cell).is_integer() else text
    if not isinstance(cell, str | int | np.integer | Decimal):
        raise DataError(f"expected a text, a number or a boolean, found {_short(cell)}")
    try:
        text = str(cell).strip()
    except ValueError as error:
        # Python writes no int of more digits than sys.get_int_max_str_digits().
        raise DataError("expected a number of fewer digits") from error
    if text.lower() in ("true", "false"):
        return text.lower()
    number = _NUMBER.fullmatch(text)
    if number is None or text == "-0":
        return "0" if number else text
    # With a point or an exponent it is a float, as it is in JSON.
    value = float(text) if number[2] or number[3] else math.inf
    if not math.isfinite(value):
        return text
    return str(int(value)) if value.is_integer() else repr(value)


def parse_boolean(cell: Cell) -> float:
    """1.0 for true, 0.0 for false, NaN where missing; texts, numbers 0 and 1 too.

    Raises DataError for anything else.
    """
    try:
        text = category_text(cell)
    except DataError:
        text = "?"
    if text is None:
        return math.nan
    if text not in _BOOLEANS:
        raise DataError(f"expected true or false, found {_short(cell)}")
    return _BOOLEANS[text]


def parse_date(cell: Cell) -> datetime.datetime | None:
    """A date or time (ISO 8601, Python's or numpy's) in UTC without a zone, None where missing.

    Without a zone it is UTC already; what is finer than a microsecond is cut off.
    Raises DataError for anything else, and for a moment outside the years 1 to 9999.
    """
    if is_missing(cell):
        return None
    found: Any = cell
    if isinstance(cell, np.datetime64):
        # Whatever its unit; an int where Python has no such date.
        found = cell.astype("datetime64[us]").item()
    try:
        if isinstance(found, str):
            # A bare number such as 20240131 is more often a code than a date.
            text = found.strip()
            found = datetime.datetime.fromisoformat("" if text.isdigit() else text)
        if isinstance(found, datetime.datetime):
            if found.tzinfo is not None:
                found = found.astimezone(datetime.UTC)
            # pandas' Timestamp is one with nanoseconds.
            return datetime.datetime.combine(found.date(), found.time())
        if isinstance(found, datetime.date):
            return datetime.datetime(found.year, found.month, found.day)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"expected a date such as 2026-01-31, found {_short(cell)}")


def date_parts(moment: datetime.datetime, parts: Sequence[DatePart]) -> list[float]:
    """The numbers that stand for a date, in the order of `parts`."""
    values = {
        "timestamp": (moment - _EPOCH) / datetime.timedelta(seconds=1),
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

    cells: one for each row; fast for a number column as an array of numbers, NaN for missing.
    Returns float64 [N, column.width], NaN where a cell is missing, and what is wrong by row.
    Raises DataError for an array that does not hold one cell a row.
    """
    bad: dict[int, str] = {}
    name = f"column {column.name!r}"
    if isinstance(cells, np.ndarray) and cells.ndim != 1:
        raise DataError(f"{name}: expected one cell a row, found shape {list(cells.shape)}")
    if isinstance(column, Column) and isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
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
                bad[row] = f"{name}: {error}"
    if np.isfinite(values).all():
        return values, bad
    infinite = np.flatnonzero(np.isinf(values).any(axis=1)).tolist()
    bad.update(dict.fromkeys(infinite, f"{name}: expected a finite number, found infinity"))
    if column.missing == "reject":
        missing = np.flatnonzero(np.isnan(values).any(axis=1)).tolist()
        reason = f"{name}: the value is missing, and this column had none missing in training"
        bad.update(dict.fromkeys(missing, reason))
    return values, bad


def _cell_encoder(column: ColumnSpec) -> Callable[[Cell], float | list[float]]:
    """A function of one cell to the column's raw values."""
    if isinstance(column, Column):
        return parse_number
    if isinstance(column, BooleanColumn):
        return parse_boolean
    if isinstance(column, CategoryColumn):
        index = {text: float(position) for position, text in enumerate(column.categories)}
        unknown = float(len(index))

        def encode(cell: Cell) -> float:
            text = category_text(cell)
            return math.nan if text is None else index.get(text, unknown)

        return encode
    parts = column.parts

    def encode_date(cell: Cell) -> list[float]:
        moment = parse_date(cell)
        return [math.nan] * len(parts) if moment is None else date_parts(moment, parts)

    return encode_date


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
        kind = "other columns" if extra_allowed else "unknown column"
        problems.append(f"{kind}: {_names(extra)}")
    if problems and (missing or twice or not extra_allowed):
        raise DataError("; ".join(problems))


def encode_columns(
    columns: Sequence[Sequence[Cell] | np.ndarray], spec: TableInput
) -> tuple[np.ndarray, dict[int, str]]:
    """A table as raw input, with the rows that cannot be.

    columns: one for each of spec.columns, in that order, as `encode_column` takes it.
    Returns float64 [N, *spec.shape] and, for each bad row, what is wrong with it (its raw input
    is meaningless then). Raises DataError for columns of different lengths.
    """
    encoded: list[np.ndarray] = []
    bad: dict[int, str] = {}
    for column, cells in zip(spec.columns, columns, strict=True):
        values, reasons = encode_column(column, cells)
        if encoded and len(values) != len(encoded[0]):
            raise DataError(
                f"column {column.name!r}: expected {len(encoded[0])} cells, as in column "
                f"{spec.columns[0].name!r}, found {len(values)}"
            )
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
        if not np.isfinite(values).all():
            cells[column.name] = None
        elif isinstance(column, Column):
            cells[column.name] = values[0]
        elif isinstance(column, BooleanColumn):
            cells[column.name] = bool(values[0])
        elif isinstance(column, CategoryColumn):
            index = int(values[0])
            known = 0 <= index < len(column.categories)
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
    """ISO 8601 of a moment with these parts: the first one, where they leave it open."""
    wanted = dict(zip(column.parts, values, strict=True))
    try:
        if "timestamp" in wanted:
            moment = _EPOCH + datetime.timedelta(seconds=wanted["timestamp"])
        else:
            moment = _moment_of(column.parts, values, wanted)
    except (ValueError, OverflowError):
        # The year 9999's last microseconds round up; others are no date's parts.
        moment = datetime.datetime.max
    return moment.isoformat().removesuffix("T00:00:00")


def _moment_of(
    parts: Sequence[DatePart], values: list[float], wanted: dict[DatePart, float]
) -> datetime.datetime:
    first = datetime.datetime(int(wanted.get("year", 1972)), 1, 1, int(wanted.get("hour", 0)))
    # In 28 years, each month and day falls on each weekday.
    for days in range(366 if "year" in wanted else 28 * 366):
        moment = first + datetime.timedelta(days=days)
        if date_parts(moment, parts) == values:
            return moment
    raise ValueError("no date has these parts")


def _is_boolean(cell: Cell) -> bool:
    return isinstance(cell, bool | np.bool_)


def _short(cell: Any) -> str:
    try:
        text = repr(cell.strip()) if isinstance(cell, str) else str(cell)
    except ValueError:
        text = "a number of very many digits"
    return text if len(text) <= 42 else f"{text[:38]}...{text[-1] * isinstance(cell, str)}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
