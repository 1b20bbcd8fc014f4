"""The parity gate: no format is released unless it answers as the eager model does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from artifacts.backends import Model, open_export, open_onnx, open_torchscript
from artifacts.cells import ColumnSpec, date_parts, parse_date
from artifacts.errors import ParityError
from artifacts.gate_report import DiffHistogram, GateReport, Tally
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, ImageInput, TableInput
from artifacts.manifest import EXPORT, ONNX, TORCHSCRIPT, FormatParity
from artifacts.parity import ABSOLUTE, RELATIVE, compare, run_in_batches
from training.pictures import Pictures

SMALL_BATCHES = (1, 2, 7, 64)
_EDGE_ROWS = 64
# The work of one format's pass at one small batch size: some seconds of one core.
_SMALL_BATCH_FLOPS = 200_000_000_000
_LEAST_ROWS = 256
_CHUNK_BYTES = 64 * 2**20
# Of a row's largest difference of logits: half decades, from below float32's own rounding to above
# every tolerance.
DIFF_EDGES = np.array([float(f"{10 ** (half / 2):.3g}") for half in range(-18, 3)])

Answers = tuple[np.ndarray, np.ndarray]


def open_formats(files: Mapping[str, bytes]) -> dict[str, Model]:
    """The exported formats, by file, on CPU. Raises BundleError where one cannot be opened."""
    return {
        ONNX: open_onnx(files[ONNX], "cpu"),
        TORCHSCRIPT: open_torchscript(files[TORCHSCRIPT], "cpu"),
        EXPORT: open_export(files[EXPORT], "cpu"),
    }


def parity_gate(
    eager: Model,
    formats: Mapping[str, Model],
    held_out: Sequence[np.ndarray | Pictures],
    spec: ImageInput | TableInput,
    max_batch_size: int,
    show: Callable[[str], None],
    flops: int = 0,
) -> GateReport:
    """Compare every format with eager on CPU, on all held-out rows and on edge inputs.

    eager: the model in eval mode on CPU. formats: as `open_formats` opens them. held_out: raw rows
    that training never saw, in pieces.
    Each format answers every row at max_batch_size, and at batch sizes 1, 2, 7 and 64 every row
    too, or where that is too much work for a model of so many floating-point operations a row
    (`flops`), rows spread evenly over them all, and the edge inputs. ONNX must give each row the
    same bits at all of them.
    Raises ParityError naming format, row, expected, actual.
    """
    edges = edge_inputs(spec)
    total = sum(len(piece) for piece in held_out)
    spread = np.arange(total)
    fewer = max(_LEAST_ROWS, _SMALL_BATCH_FLOPS // max(1, flops))
    if fewer < total:
        spread = np.unique(np.linspace(0, total - 1, fewer).astype(np.int64))
    small = ", ".join(map(str, SMALL_BATCHES))
    show(
        f"gate: {', '.join(formats)}: {total + len(edges)} rows at batch size {max_batch_size}, "
        f"{len(spread) + len(edges)} at {small}"
    )
    counts = {
        name: {size: _Count() for size in (*SMALL_BATCHES, max_batch_size)} for name in formats
    }
    for number, raw in _chunks(held_out, edges, max_batch_size):
        expected = run_in_batches(eager, raw, max_batch_size)
        if not all(np.isfinite(array).all() for array in expected):
            row = int(np.flatnonzero(~np.isfinite(expected[0]).all(axis=1))[0])
            raise ParityError(f"eager: {_row_name(number, total, row)}: logits are not finite")
        _, once = np.unique(number, return_index=True)
        chosen = once[(number[once] >= total) | np.isin(number[once], spread)]
        for name, model in formats.items():
            whole = run_in_batches(model, raw, max_batch_size)
            at_largest = (whole[0][chosen], whole[1][chosen])
            for size, count in counts[name].items():
                rows, found = np.arange(len(raw)), whole
                if size != max_batch_size:
                    rows, found = chosen, run_in_batches(model, raw[chosen], size)
                row_name = functools.partial(_row_name, number[rows], total)
                wanted = (expected[0][rows], expected[1][rows])
                count.add(
                    f"{name} differs from eager at batch size {size}", row_name, wanted, found
                )
                if name == ONNX and size != max_batch_size:
                    _check_bits(at_largest, found, row_name, f"{max_batch_size}, at {size}")
    return GateReport(
        tolerance=f"|difference of logits| <= {ABSOLUTE['cpu']:g} + {RELATIVE:g} * |logit|",
        device="cpu",
        held_out_rows=total,
        edge_rows=len(edges),
        batch_sizes=tuple(dict.fromkeys((*SMALL_BATCHES, max_batch_size))),
        formats={
            name: {str(size): count.tally() for size, count in by_size.items()}
            for name, by_size in counts.items()
        },
        histogram=DiffHistogram(
            edges=tuple(DIFF_EDGES.tolist()),
            counts={
                name: tuple(sum(count.histogram for count in by_size.values()).tolist())
                for name, by_size in counts.items()
            },
        ),
        one_answer=f"each of {len(spread) + len(edges)} rows has the same bits in model.onnx at "
        "all batch sizes",
    )


@dataclass
class _Count:
    """Of one format at one batch size; histogram: int64, as in `DiffHistogram`."""

    rows: int = 0
    max_abs_diff: float = 0.0
    label_disagreements: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(DIFF_EDGES) + 1, np.int64))

    def add(
        self, where: str, names: Callable[[int], str], expected: Answers, found: Answers
    ) -> None:
        result = compare(expected, found, "cpu", row_names=names)
        if result.failures:
            raise ParityError(f"{where}: {'; '.join(result.failures)}")
        self.rows += result.rows
        self.max_abs_diff = max(self.max_abs_diff, result.max_abs_diff)
        self.label_disagreements += result.label_disagreements
        places = np.searchsorted(DIFF_EDGES, result.row_diffs, side="right")
        self.histogram += np.bincount(places, minlength=len(self.histogram))

    def tally(self) -> Tally:
        return Tally(
            rows=self.rows,
            max_abs_diff=self.max_abs_diff,
            label_disagreements=self.label_disagreements,
        )


def _check_bits(first: Answers, second: Answers, names: Callable[[int], str], sizes: str) -> None:
    for what, ours, theirs in zip(("logits", "probabilities"), first, second, strict=True):
        differs = np.flatnonzero((ours != theirs).any(axis=1))
        if len(differs):
            row = int(differs[0])
            raise ParityError(
                f"{ONNX}: answers depend on the batch: {names(row)}: {what} at batch sizes "
                f"{sizes}: {ours[row].tolist()}, {theirs[row].tolist()} "
                f"({len(differs)} rows differ)"
            )


def _chunks(
    held_out: Sequence[np.ndarray | Pictures], edges: np.ndarray, max_batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and raw rows: the held-out pieces one after the other, then the edge inputs.

    Where no piece fills a batch of the full size, the edge inputs come round again until they do.
    """
    most = max(max_batch_size, _CHUNK_BYTES // edges[0].nbytes)
    start = 0
    for piece in held_out:
        for first in range(0, len(piece), most):
            raw = piece[first : first + most]
            yield np.arange(start + first, start + first + len(raw)), raw
        start += len(piece)
    full = any(len(piece) >= max_batch_size for piece in held_out)
    again = np.arange(len(edges) if full else max(len(edges), max_batch_size)) % len(edges)
    yield start + again, edges[again]


def summary(report: GateReport) -> dict[str, FormatParity]:
    """What the manifest keeps of a gate's report: each format's worst over the batch sizes."""
    return {
        name: FormatParity(
            rows=sum(tally.rows for tally in by_size.values()),
            max_abs_diff=max(tally.max_abs_diff for tally in by_size.values()),
            label_disagreements=sum(tally.label_disagreements for tally in by_size.values()),
        )
        for name, by_size in report.formats.items()
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


def _row_name(numbers: np.ndarray, held_out: int, position: int) -> str:
    row = int(numbers[position])
    return f"held-out row {row}" if row < held_out else f"edge input {row - held_out}"
