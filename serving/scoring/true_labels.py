"""A column of true labels -> the model's labels, as training reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.arrow import code_cells
from artifacts.cells import Cell, category_text
from artifacts.errors import DataError

MISSING, UNKNOWN = -1, -2


def true_labels(
    column: pa.Array | pa.ChunkedArray,
    labels: tuple[str, ...],
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """Each row's label as its index, int64 [N], and the rows of labels that are none, by name.

    MISSING (-1) where the cell is missing, UNKNOWN (-2) where it is no label of the model. A text
    that is a label to the letter is that label; others are by `category_text`: 1, 1.0, "1" and
    " 1 " are "1", true and "True" are "true". names: what whole numbers stand for, where the file
    says so (`artifacts.arrow.class_names`); a number below 0 is then a missing label.
    Raises DataError, without the column's name, for a column of anything but texts, numbers and
    booleans.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _may_be_labels(kind):
        raise DataError(f"expected labels that are texts, numbers or booleans, found {kind}")
    cells, places = code_cells(column)
    index = _index(labels)
    texts = [_text(cell, index, names) for cell in cells]
    codes = [MISSING if text is None else index.get(text, UNKNOWN) for text in texts]
    unknown: Counter[str] = Counter()
    if UNKNOWN in codes:
        counts = np.bincount(places, minlength=len(cells)).tolist()
        for text, code, rows in zip(texts, codes, counts, strict=True):
            if text is not None and code == UNKNOWN:
                unknown[text] += rows
    return np.array(codes, dtype=np.int64)[places], dict(unknown)


def _index(labels: tuple[str, ...]) -> dict[str, int]:
    """Where each text is among the labels: to the letter, and as `category_text` has it.

    Those of tables are the same both ways; the names of pictures' folders may be "None" or "1.0".
    """
    texts = [category_text(label) for label in labels]
    times = Counter(texts)
    index = {
        text: place for place, text in enumerate(texts) if text is not None and times[text] == 1
    }
    return index | {label: place for place, label in enumerate(labels)}


def _text(cell: Cell, index: dict[str, int], names: Sequence[str] | None) -> str | None:
    if isinstance(cell, str):
        return cell.strip() if cell.strip() in index else category_text(cell)
    if names is None or isinstance(cell, bool) or not isinstance(cell, int):
        return category_text(cell)
    if cell < 0:
        return None
    return names[cell] if cell < len(names) else str(cell)


def _may_be_labels(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_null(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
    )
