"""What a table's columns are: types inferred from their cells, ranges and categories.

Types are inferred on every row, so that a column whose type changes half-way is found; ranges and
categories come from the training part alone.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.arrow import code_cells, encode_array
from artifacts.cells import (
    ColumnSpec,
    category_text,
    is_missing,
    parse_boolean,
    parse_date,
    parse_number,
)
from artifacts.errors import DataError, nearest
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    DatePart,
    TableInput,
)
from training.recipe import ColumnType, DataConfig

MAX_LABELS = 1000
# Where numbers with decimals are among them.
_MOST_FRACTIONS = 20
# A column of mixed cells is one of texts while it has at most so many different numbers.
_FEW_NUMBERS = 20
_FEW_AT_ONCE = 5
_FEW_ODD = 0.05
# A column of texts that hardly ever repeat is free text: its categories would cover fewer rows.
_LEAST_COVERED = 0.25
_OFTEN = 5
# Of "paid" the end is no word.
_IDENTIFIER = re.compile(r"(?i:(^|[_\s-])(id|uuid|guid|key|index)$)|(?<=[a-z])(ID|Id)$")
_TEXT: Literal["category"] = "category"
_NUMBER: Literal["number"] = "number"
_BOOLEAN: Literal["boolean"] = "boolean"
_DATE: Literal["date"] = "date"


@dataclass(frozen=True)
class Typed:
    """A column's type, and its name in the table."""

    name: str
    type: ColumnType


def read_labels(
    table: pa.Table, target: str, known: tuple[str, ...] | None = None, part: str = "train"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label column as indices, int64 [N], and the labels' names.

    Numbers are ordered as numbers, everything else as texts. known: the names that there may be.
    part: what messages call the table.
    Raises DataError for a missing label, an unknown one, only one, or too many.
    """
    column = f"{part}: column {target!r}"
    labels = _plain(table.column(target))
    if not (_is_text(labels.type) or _is_number(labels.type) or pa.types.is_boolean(labels.type)):
        raise DataError(
            f"{column}: expected labels that are texts, numbers or booleans, found {labels.type}"
        )
    try:
        different, places = code_cells(labels)
    except DataError as error:
        raise DataError(f"{column}: {error}") from error
    named = [category_text(cell) for cell in different]
    texts = [named[place] for place in places]
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise DataError(
            f"{column}: row {missing[0]}: the label is missing "
            f"(rows without a label: {len(missing)})"
        )
    found = set(texts)
    if known is not None:
        for row, text in enumerate(texts):
            if text not in known:
                raise DataError(
                    f"{column}: row {row}: expected one of the training labels "
                    f"{some(known)}, found {text!r}"
                )
    if len(found) < 2 and known is None:
        raise DataError(f"{column}: expected at least two labels, found {some(found)}")
    most = MAX_LABELS if all(map(_is_name, found)) else _MOST_FRACTIONS
    if len(found) > most:
        raise DataError(
            f"{column}: expected at most {most} labels, found {len(found)} different values: "
            "is it a quantity rather than a class?"
        )
    names = known or tuple(sorted(found, key=_label_order(found)))
    index = {text: position for position, text in enumerate(names)}
    return np.array([index[text] for text in texts], dtype=np.int64), names


def _is_name(text: str) -> bool:
    """Whether a label is anything but a number with decimals."""
    return "." not in text or _fails(parse_number, text)


def _label_order(texts: set[str]) -> Callable[[str], object]:
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return lambda text: text
    return lambda text: (numbers[text], text)


def infer_columns(table: pa.Table, config: DataConfig) -> tuple[list[Typed], list[str]]:
    """The columns to learn from with their types, and notes on those that are left out.

    table: all rows but those of a test part of its own, the label column too.
    Raises DataError for a column without a single value, and for one whose type changes.
    """
    unknown = [name for name in config.columns if name not in table.column_names]
    if unknown:
        raise DataError(
            f"data.columns: no column {unknown[0]!r}; there are: {some(table.column_names)}"
            f"{nearest(unknown[0], table.column_names)}"
        )
    columns, notes = [], []
    for name in table.column_names:
        chosen = config.columns.get(name)
        if name == config.target:
            continue
        if not name:
            notes.append("left out: the column without a name")
            continue
        if chosen == "drop":
            notes.append(f"left out: column {name!r}, as data.columns says")
            continue
        array = _plain(table.column(name))
        _check_type(name, array.type)
        cells = [cell for cell in _different(array) if not is_missing(cell)]
        if not cells:
            raise DataError(
                f"column {name!r}: all {len(array)} cells are missing; leave it out: "
                f'--set \'data.columns."{name}"="drop"\''
            )
        kind = chosen or _infer(name, array, cells)
        reason = None if chosen else _worthless(name, kind, array, cells, config)
        if reason:
            notes.append(f"left out: column {name!r}: {reason}")
        else:
            columns.append(Typed(name, kind))
    if not columns:
        raise DataError(f"no column is left to learn from; {'; '.join(notes) or 'there is none'}")
    return columns, notes


def _infer(name: str, array: pa.Array, cells: Sequence[object]) -> ColumnType:
    """The type that every cell has; cells: the different ones, none missing."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return _BOOLEAN
    if _is_date(kind):
        return _DATE
    if _is_number(kind):
        return _NUMBER
    if not any(_fails(_is_word_boolean, cell) for cell in cells):
        return _BOOLEAN
    for type_, parse in ((_NUMBER, parse_number), (_DATE, parse_date)):
        odd = {cell for cell in cells if _fails(parse, cell)}
        if not odd:
            return type_
        _refuse_change(name, array, type_, odd, len(cells) - len(odd))
    return _TEXT


def _check_type(name: str, kind: pa.DataType) -> None:
    known = _is_text(kind) or _is_number(kind) or _is_date(kind)
    if not (known or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"column {name!r}: expected numbers, texts, booleans or dates, found {kind}; "
            f'leave it out: --set \'data.columns."{name}"="drop"\''
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_date(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _refuse_change(
    name: str, array: pa.Array, kind: str, odd: Collection[object], different: int
) -> None:
    """Raise DataError where a column is of one kind but for a few cells, or but for its end.

    different: how many different cells are of that kind. Where both kinds come all along, as in
    ticket numbers, or few are of it, it is a column of texts.
    """
    if different <= _FEW_AT_ONCE:
        return
    rows = [
        (row, cell in odd) for row, cell in enumerate(array.to_pylist()) if not is_missing(cell)
    ]
    changes = sum(left[1] != right[1] for left, right in itertools.pairwise(rows))
    strange = [row for row, is_odd in rows if is_odd]
    few = different > _FEW_NUMBERS and len(strange) <= _FEW_ODD * len(rows)
    if changes > 1 and not few:
        return
    row = strange[0]
    raise DataError(
        f"column {name!r}: {len(rows) - len(strange)} cells are {kind}s, but row {row} holds "
        f"{str(array[row].as_py())[:40]!r} (such rows: {len(strange)}): correct it, or say what "
        f'is meant: --set \'data.columns."{name}"="category"\' (or "drop")'
    )


def _fails(parse: Callable[[str], object], cell: object) -> bool:
    try:
        parse(str(cell))
    except DataError:
        return True
    return False


def _is_word_boolean(text: str) -> None:
    # 0 and 1 are numbers.
    if text.strip() in {"0", "1"}:
        raise DataError("a number")
    parse_boolean(text)


def _worthless(
    name: str, kind: str, array: pa.Array, cells: Sequence[object], config: DataConfig
) -> str | None:
    """Why nothing can be learnt from a column, or None."""
    array = _comparable(array)
    present = len(array) - sum(map(_count, _missing_cells(array)))
    texts = {category_text(cell) for cell in cells}  # type: ignore[arg-type]
    if len(texts) == 1 and present == len(array):
        return f"it is constant ({next(iter(texts))!r})"
    if present < 2 or kind in {_BOOLEAN, _DATE}:
        return None
    if kind == _NUMBER:
        whole = pa.types.is_integer(array.type) or all(
            re.fullmatch(r"-?\d+", str(text)) for text in texts
        )
        if not whole or len(texts) < present:
            return None
        numbers = [int(str(text)) for text in texts]
        consecutive = max(numbers) - min(numbers) + 1 == len(numbers) and len(numbers) > 10
        if consecutive or _IDENTIFIER.search(name):
            return f"it numbers the rows ({present} different whole numbers)"
        return None
    counts = pc.value_counts(array)
    rows = counts.field("counts").to_numpy(zero_copy_only=False)
    covered = sum(
        int(count)
        for cell, count in zip(counts.field("values").to_pylist(), rows, strict=True)
        if count >= _OFTEN and not is_missing(cell)
    )
    if len(texts) == present and present > 10 and present == len(array):
        return f"it identifies the rows ({present} different texts)"
    often_missing = len(array) - present > 0.05 * len(array)
    if covered < _LEAST_COVERED * present and not often_missing and len(texts) > 10:
        return f"it is free text ({len(texts)} different texts in {present} rows)"
    return None


def _missing_cells(array: pa.Array) -> list[dict[str, object]]:
    return [entry for entry in pc.value_counts(array).to_pylist() if is_missing(entry["values"])]


def _count(entry: dict[str, object]) -> int:
    return int(entry["counts"])  # type: ignore[call-overload,no-any-return]


def describe(
    columns: Sequence[Typed], table: pa.Table, rows: np.ndarray, config: DataConfig
) -> TableInput:
    """What the model takes: ranges and categories of the training part.

    table: its other rows too, to know in which columns cells may be missing. rows: int64, those
    of the training part.
    """
    return TableInput(
        columns=tuple(
            _describe(column, table.column(column.name), rows, config) for column in columns
        )
    )


def _some_missing(array: pa.ChunkedArray) -> bool:
    return any(is_missing(cell) for cell in _different(array))


def _some_present(array: pa.ChunkedArray) -> bool:
    return not all(is_missing(cell) for cell in _different(array))


def _describe(
    column: Typed, whole: pa.ChunkedArray, rows: np.ndarray, config: DataConfig
) -> ColumnSpec:
    name = column.name
    missing = "fill" if _some_missing(whole) else config.missing
    array = whole.take(pa.array(rows))
    if not _some_present(array):
        raise DataError(
            f"column {name!r}: no value in the training part (its other rows have some); "
            f'leave it out: --set \'data.columns."{name}"="drop"\''
        )
    if column.type == _TEXT:
        if _is_date(_plain(whole).type):
            raise DataError(f"column {name!r}: expected texts, numbers or booleans, found dates")
        categories, typical = _categories(array, config)
        return CategoryColumn(name=name, missing=missing, categories=categories, typical=typical)
    draft: ColumnSpec
    if column.type == _BOOLEAN:
        draft = BooleanColumn(name=name, missing="fill", typical=True)
    elif column.type == _DATE:
        parts: tuple[DatePart, ...] = ("timestamp", "year", "month", "day", "weekday", "hour")
        draft = DateColumn(name=name, missing="fill", parts=parts, low="", high="", typical="")
    else:
        draft = Column(name=name, missing="fill", low=0.0, high=0.0, typical=0.0)
    values, bad = encode_array(draft, array)
    if bad:
        first = min(bad)
        raise DataError(f"train: row {rows[first]}: {bad[first]} (bad rows: {len(bad)})")
    known = values[~np.isnan(values).any(axis=1)]
    if isinstance(draft, BooleanColumn):
        return BooleanColumn(name=name, missing=missing, typical=bool(known.mean() >= 0.5))
    if isinstance(draft, Column):
        low, high, typical = known.min(), known.max(), np.median(known)
        return Column(
            name=name, missing=missing, low=float(low), high=float(high), typical=float(typical)
        )
    return _describe_dates(name, missing, known)


def _describe_dates(name: str, missing: str, known: np.ndarray) -> DateColumn:
    seconds = np.sort(known[:, 0])
    has_time = bool((seconds % 86400 != 0).any())
    parts: tuple[DatePart, ...] = ("timestamp", "year", "month", "day", "weekday")
    if has_time:
        parts += ("hour",)
    texts = []
    for value in (seconds[0], seconds[-1], seconds[len(seconds) // 2]):
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=float(value))
        texts.append(moment.isoformat() if has_time else moment.date().isoformat())
    return DateColumn(
        name=name, missing=missing, parts=parts, low=texts[0], high=texts[1], typical=texts[2]
    )


def _categories(array: pa.ChunkedArray, config: DataConfig) -> tuple[tuple[str, ...], str]:
    """The texts that enough training rows have, sorted, and the most frequent one."""
    counts: dict[str, int] = {}
    for entry in pc.value_counts(_plain(array)).to_pylist():
        text = category_text(entry["values"])
        if text is not None:
            counts[text] = counts.get(text, 0) + entry["counts"]
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    kept = [text for text in ranked if counts[text] >= config.min_count] or ranked[:1]
    return tuple(sorted(kept[: config.max_categories])), ranked[0]


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_float16(array.type):
        # Before pyarrow 26 its values cannot be counted.
        return array.cast(pa.float32())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _comparable(array: pa.Array) -> pa.Array:
    """Dates as texts: Python has neither nanoseconds nor years beyond 9999."""
    if pa.types.is_timestamp(array.type):
        # Without its zone, whose rules a text would need.
        array = array.cast(pa.int64()).cast(pa.timestamp(array.type.unit))
    return array.cast(pa.string()) if _is_date(array.type) else array


def _different(column: pa.ChunkedArray | pa.Array) -> list[object]:
    return list(pc.unique(_comparable(_plain(column))).to_pylist())


def some(values: object) -> str:
    """The first of some names, and how many more there are."""
    listed = list(values)  # type: ignore[call-overload]
    shown = ", ".join(repr(value) for value in listed[:10])
    return shown + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
