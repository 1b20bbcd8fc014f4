"""What is written for each row, as Parquet, CSV or JSON lines."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from artifacts.errors import DataError

Format = Literal["parquet", "csv", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)
Shown = Literal["all", "top", "none"]
SHOWN: tuple[str, ...] = get_args(Shown)
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class AnswerForm:
    """probabilities: of all labels, of the answered ones, or none. top_k: also the K most probable
    labels, in order. file: whether there is more than one input, so that each row tells its own."""

    format: Format = "parquet"
    probabilities: Shown = "all"
    top_k: int = 0
    file: bool = False

    def check(self, labels: int) -> None:
        """Raises DataError."""
        if self.format not in FORMATS:
            raise DataError(f"--format: expected one of {', '.join(FORMATS)}, found {self.format}")
        if self.probabilities not in SHOWN:
            raise DataError(
                f"--probabilities: expected one of {', '.join(SHOWN)}, found {self.probabilities}"
            )
        if not 0 <= self.top_k <= labels:
            raise DataError(f"--top-k: expected 0 to {labels}, found {self.top_k}")


def answer_table(
    labels: Sequence[str],
    form: AnswerForm,
    *,
    rows: np.ndarray,
    passed: pa.Table,
    probabilities: np.ndarray,
    index: np.ndarray,
    file: str = "",
) -> pa.Table:
    """The rows of a part: passed columns, file, row, label, index, probability, all probabilities.

    rows: int64 [N]; passed: N rows; probabilities: float32 [N, K], stored as they are; index: of
    the answered labels, int64 [N]; probability is that label's. A passed column that collides with
    one written here becomes input_NAME.
    """
    names = pa.array(labels, pa.string())
    shown = form.probabilities
    answers: dict[str, pa.Array] = {}
    if form.file:
        answers["file"] = pa.repeat(pa.scalar(file), len(rows))
    answers["row"] = pa.array(rows, pa.int64())
    answers["label"] = names.take(pa.array(index))
    answers["index"] = pa.array(index, pa.int64())
    if shown != "none":
        answers["probability"] = pa.array(probabilities[np.arange(len(index)), index])
    if form.top_k:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : form.top_k]
        for place in range(form.top_k):
            chosen = np.ascontiguousarray(order[:, place])
            answers[f"top_{place + 1}"] = names.take(pa.array(chosen))
            if shown != "none":
                values = probabilities[np.arange(len(chosen)), chosen]
                answers[f"top_{place + 1}_probability"] = pa.array(values)
    if shown == "all":
        for label, column in zip(labels, _by_label(probabilities), strict=True):
            answers[f"probability_{label}"] = pa.array(column)
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(passed.column_names, passed.columns, strict=True):
        free = name
        while free in answers or free in columns:
            free = f"input_{free}"
        columns[free] = column
    # An answer is never missing: readers need not ask, and it is written in two thirds of the time.
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    fields += [pa.field(name, column.type, nullable=False) for name, column in answers.items()]
    return pa.table([*columns.values(), *answers.values()], schema=pa.schema(fields))


def _by_label(probabilities: np.ndarray) -> np.ndarray:
    """float32 [K, N] of [N, K], a few rows at a time, which stay in the processor's cache."""
    columns = np.empty(probabilities.shape[::-1], probabilities.dtype)
    for start in range(0, len(probabilities), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        columns[:, rows] = probabilities[rows].T
    return columns


def encode_table(table: pa.Table, form: Format) -> bytes | memoryview:
    """A table as the bytes of a file; the same table gives the same bytes."""
    return _ENCODERS[form](table)


def _parquet(table: pa.Table) -> memoryview:
    buffer = pa.BufferOutputStream()
    # Floats hardly ever come twice, and cannot be compressed: to try takes longer than all else.
    # Nor does a part's least and greatest probability, or label, tell whoever looks for rows much;
    # its file does.
    types = pa.types
    floats = [field.name for field in table.schema if types.is_floating(field.type)]
    numbers = [field.name for field in table.schema if types.is_integer(field.type)]
    others = [name for name in table.column_names if name not in {*floats, *numbers}]
    told = [name for name in others if table.schema.field(name).nullable or name == "file"]
    pq.write_table(
        table,
        buffer,
        use_dictionary=others,
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        compression=dict.fromkeys([*numbers, *others], "snappy"),
        write_statistics=[*numbers, *told],
        row_group_size=max(1, len(table)),
    )
    return memoryview(buffer.getvalue())


def _csv(table: pa.Table) -> bytes:
    for position, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or _is_binary(field.type):
            texts = [
                None if v is None else _json_text(v) for v in table.column(position).to_pylist()
            ]
            table = table.set_column(position, field.name, pa.array(texts, pa.string()))
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def _jsonl(table: pa.Table) -> bytes:
    """Floats are the shortest text that reads as the same one; NaN and infinities are null."""
    if not len(table):
        return b""
    pieces: list[Any] = []
    for position, name in enumerate(table.column_names):
        pieces.append(
            ("{" if position == 0 else ", ") + json.dumps(name, ensure_ascii=False) + ": "
        )
        pieces.append(_json_texts(table.column(position).combine_chunks()))
    pieces.append("}\n")
    lines = pc.binary_join_element_wise(
        *(pa.scalar(piece, pa.large_string()) if isinstance(piece, str) else piece
          for piece in pieces),
        pa.scalar("", pa.large_string()),
    )  # fmt: skip
    lines = lines.combine_chunks() if isinstance(lines, pa.ChunkedArray) else lines
    return bytes(lines.buffers()[2])


def _json_texts(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_finite(array), array, None)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        texts = pc.cast(array, pa.large_string())
    else:
        coded = array.dictionary_encode() if not pa.types.is_nested(kind) else None
        values = array if coded is None else coded.dictionary
        written = pa.array([_json(value) for value in values.to_pylist()], pa.large_string())
        texts = written if coded is None else written.take(coded.indices)
    return pc.fill_null(texts, "null")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _json_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else _json(value)


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


_ENCODERS: dict[str, Callable[[pa.Table], bytes | memoryview]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
}
