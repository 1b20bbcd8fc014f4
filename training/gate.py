"""The parity gate: no format is released unless it answers as the eager model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from artifacts.backends import Model, open_export, open_onnx, open_torchscript
from artifacts.cells import ColumnSpec, date_parts, parse_date
from artifacts.errors import ParityError
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, ImageInput, TableInput
from artifacts.manifest import EXPORT, ONNX, TORCHSCRIPT, FormatParity
from artifacts.parity import ABSOLUTE, RELATIVE, compare, one_answer, run_in_batches

SMALL_BATCHES = (1, 2, 7, 64)
_EDGE_ROWS = 64


def parity_gate(
    eager: Model,
    files: dict[str, bytes],
    held_out: np.ndarray,
    spec: ImageInput | TableInput,
    max_batch_size: int,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Compare every format with eager on CPU, on all held-out rows and on edge inputs.

    eager: the model in eval mode on CPU. held_out: raw rows that training never saw.
    Each format answers every row at batch sizes 1, 2, 7, 64 and max_batch_size; ONNX must also
    give each row the same bits at all of them.
    Returns the report (`parity.json`). Raises ParityError naming format, row, expected, actual.
    """
    edges = edge_inputs(spec)
    raw = np.concatenate([held_out, edges])
    expected = run_in_batches(eager, raw, max_batch_size)
    if not all(np.isfinite(array).all() for array in expected):
        row = int(np.flatnonzero(~np.isfinite(expected[0]).all(axis=1))[0])
        raise ParityError(f"eager: {_row_name(row, len(held_out))}: logits are not finite")
    sizes = (*SMALL_BATCHES, max_batch_size)
    formats = {
        ONNX: open_onnx(files[ONNX], "cpu"),
        TORCHSCRIPT: open_torchscript(files[TORCHSCRIPT], "cpu"),
        EXPORT: open_export(files[EXPORT], "cpu"),
    }
    report: dict[str, Any] = {
        "tolerance": f"|difference of logits| <= {ABSOLUTE['cpu']:g} + {RELATIVE:g} * |logit|",
        "device": "cpu",
        "held_out_rows": len(held_out),
        "edge_rows": len(edges),
        "batch_sizes": list(sizes),
        "formats": {},
    }
    for name, model in formats.items():
        show(f"gate: {name}: {len(raw)} rows at batch sizes {', '.join(map(str, sizes))}")
        by_size: dict[str, Any] = {}
        for size in sizes:
            # Rows come round again until there is at least one batch of the full size.
            rows = np.arange(max(len(raw), size)) % len(raw)
            wanted = (expected[0][rows], expected[1][rows])
            result = compare(wanted, run_in_batches(model, raw[rows], size), "cpu")
            if result.failures:
                where = "; ".join(result.failures)
                raise ParityError(f"{name} differs from eager at batch size {size}: {where}")
            by_size[str(size)] = {
                "rows": result.rows,
                "max_abs_diff": result.max_abs_diff,
                "label_disagreements": result.label_disagreements,
            }
        report["formats"][name] = by_size
    rows = np.arange(max(len(raw), max_batch_size)) % len(raw)
    difference = one_answer(formats[ONNX], raw[rows], sizes)
    if difference:
        raise ParityError(f"{ONNX}: answers depend on the batch: {difference}")
    report["one_answer"] = "each row has the same bits in model.onnx at all batch sizes"
    return report


def summary(report: dict[str, Any]) -> dict[str, FormatParity]:
    """What the manifest keeps of a gate's report: each format's worst over the batch sizes."""
    return {
        name: FormatParity(
            rows=sum(entry["rows"] for entry in by_size.values()),
            max_abs_diff=max(entry["max_abs_diff"] for entry in by_size.values()),
            label_disagreements=sum(entry["label_disagreements"] for entry in by_size.values()),
        )
        for name, by_size in report["formats"].items()
    }


def edge_inputs(spec: ImageInput | TableInput) -> np.ndarray:
    """Raw rows at the edges of what may come: [64, *input shape], the same each time."""
    generator = np.random.default_rng(0)
    if isinstance(spec, ImageInput):
        rows = generator.integers(0, 256, (_EDGE_ROWS, *spec.shape), dtype=np.uint8)
        rows[0], rows[1] = 0, 255
        rows[2] = np.indices(spec.shape).sum(axis=0) % 2 * 255
        rows[3] = np.linspace(0, 255, spec.width).astype(np.uint8)
        rows[4] = 0
        rows[4, :, spec.height // 2, spec.width // 2] = 255
        return rows
    table = synthetic_rows(spec, _EDGE_ROWS)
    start = 0
    for column in spec.columns:
        values = table[:, start : start + column.width]
        start += column.width
        if isinstance(column, Column):
            low, high = column.low, column.high
            extremes = np.finfo(np.float64)
            values[:10, 0] = [
                low, high, 0.0, low - 1000 * (high - low), high + 1000 * (high - low),
                1e30, -1e30, extremes.max, -extremes.max, extremes.tiny,
            ]  # fmt: skip
        elif isinstance(column, CategoryColumn):
            # First and last, and one that training never saw.
            values[:3, 0] = [0, len(column.categories) - 1, len(column.categories)]
        if column.missing == "fill":
            scattered = generator.random(_EDGE_ROWS) < 0.3
            scattered[:11] = False
            scattered[10] = True
            values[scattered] = np.nan
    return table


def synthetic_rows(spec: ImageInput | TableInput, rows: int) -> np.ndarray:
    """Made rows in the ranges of the real ones, for bundles that may not hold real rows."""
    generator = np.random.default_rng(1)
    if isinstance(spec, ImageInput):
        return generator.integers(0, 256, (rows, *spec.shape), dtype=np.uint8)
    return np.concatenate([_made(column, rows, generator) for column in spec.columns], axis=1)


def _made(column: ColumnSpec, rows: int, generator: np.random.Generator) -> np.ndarray:
    """float64 [rows, column.width], none missing."""
    share = generator.random((rows, 1))
    if isinstance(column, Column):
        return column.low + (column.high - column.low) * share
    if isinstance(column, BooleanColumn):
        return np.floor(2 * share)
    if isinstance(column, CategoryColumn):
        return np.floor((len(column.categories) + 1) * share)
    low, high = parse_date(column.low), parse_date(column.high)
    assert low is not None and high is not None
    moments = [low + (high - low) * float(value) for value in share[:, 0]]
    return np.array([date_parts(moment, column.parts) for moment in moments])


def _row_name(row: int, held_out: int) -> str:
    return f"held-out row {row}" if row < held_out else f"edge input {row - held_out}"
