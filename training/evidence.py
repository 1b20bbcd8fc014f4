"""What a release keeps for people to look at: curves, mistakes, and what the answers depend on.

All of it is a function of model and data, so that the same training gives the same bundle.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import numpy as np
from PIL import Image

from artifacts.backends import Model
from artifacts.cells import decode_row
from artifacts.decision import decide
from artifacts.estimates import log_losses
from artifacts.evidence import (
    LONGEST_SIDE,
    MOST_MISTAKES,
    CellValue,
    ColumnImportance,
    Curves,
    Evidence,
    Mistake,
    Point,
    Spread,
)
from artifacts.inputs import ImageInput, TableInput
from artifacts.parity import run_in_batches
from artifacts.pixels import encode_png
from training.data import Dataset, Part

SHUFFLES = 5
_MOST_ROWS, _LEAST_ROWS, _LEAST_SCREENED = 2000, 100, 16
# Of all columns those that get the full number of rows and shuffles, where all cannot.
_CLOSELY = 20
# What each of the two looks at the columns may cost: some seconds of one core.
_FLOPS = 150_000_000_000
_MOST_POINTS = 200
_MOST_CELLS, _LONGEST_CELL = 24, 200


def gather_evidence(
    dataset: Dataset,
    probabilities: np.ndarray,
    threshold: float,
    served: Model,
    batch_size: int,
    flops: int,
    *,
    with_rows: bool,
) -> Evidence:
    """The evidence of a model on the test part.

    probabilities: the test part's, float32 [N, K], as the metrics are of. served: the model as it
    is served, whose answers are counted for the columns' importance, so many rows at a time;
    flops: of one row. with_rows: whether rows of the data may be kept.
    """
    importance: tuple[ColumnImportance, ...] = ()
    if isinstance(dataset.input, TableInput):
        importance = column_importance(served, dataset, batch_size, threshold, flops)
    return Evidence(
        curves=curves(probabilities, dataset.test.labels),
        mistakes=_mistakes(dataset, probabilities, threshold, importance) if with_rows else None,
        importance=importance,
    )


def curves(probabilities: np.ndarray, labels: np.ndarray) -> Curves | None:
    """ROC and precision against recall by torchmetrics; None where there are not two labels.

    probabilities: float32 [N, K]; labels: int64 [N].
    """
    if probabilities.shape[1] != 2 or len(np.unique(labels)) < 2:
        return None
    import torch
    from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

    scores = torch.from_numpy(np.ascontiguousarray(probabilities[:, 1]))
    truth = torch.from_numpy(labels)
    false_positive, true_positive, _ = binary_roc(scores, truth, validate_args=False)
    precision, recall, _ = binary_precision_recall_curve(scores, truth, validate_args=False)
    return Curves(
        roc=_thinned(false_positive.numpy(), true_positive.numpy()),
        # From the lowest threshold, where recall is 1.
        precision_recall=_thinned(recall.numpy(), precision.numpy()),
    )


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[Point, ...]:
    """Of a curve's points some that are evenly far from each other along it, ends included."""
    points = np.clip(np.stack([x, y], axis=1).astype(np.float64), 0.0, 1.0)
    if len(points) > _MOST_POINTS:
        way = np.concatenate([[0.0], np.abs(np.diff(points, axis=0)).sum(axis=1).cumsum()])
        wanted = np.linspace(0.0, way[-1], _MOST_POINTS)
        places = np.unique(np.append(np.searchsorted(way, wanted), len(points) - 1))
        points = points[np.minimum(places, len(points) - 1)]
    return tuple((float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in points.tolist())


def _mistakes(
    dataset: Dataset,
    probabilities: np.ndarray,
    threshold: float,
    importance: tuple[ColumnImportance, ...],
) -> tuple[Mistake, ...]:
    """The wrongly answered rows whose answer was most probable."""
    labels = dataset.test.labels
    answered = decide(probabilities, threshold)
    given = probabilities[np.arange(len(labels)), answered]
    wrong = np.flatnonzero(answered != labels)
    worst = wrong[np.argsort(-given[wrong], kind="stable")][:MOST_MISTAKES]
    shown = [entry.column for entry in importance[:_MOST_CELLS]]
    return tuple(
        Mistake(
            row=row,
            label=int(labels[row]),
            answer=int(answered[row]),
            probability=float(given[row]),
            of_label=float(probabilities[row, labels[row]]),
            picture=_picture(raw) if isinstance(dataset.input, ImageInput) else None,
            cells=None
            if isinstance(dataset.input, ImageInput)
            else _cells(raw, dataset.input, shown),
        )
        for row, raw in zip(worst.tolist(), _rows(dataset.test, worst), strict=True)
    )


def _rows(part: Part, rows: np.ndarray) -> np.ndarray:
    return part.raw[rows] if len(rows) else np.empty((0,))


def _picture(raw: np.ndarray) -> str:
    """uint8 [C, H, W] as a PNG in base64, at most 128 pixels a side."""
    longest = max(raw.shape[1:])
    if longest > LONGEST_SIDE:
        image = Image.fromarray(raw[0] if len(raw) == 1 else raw.transpose(1, 2, 0))
        sides = [max(1, round(side * LONGEST_SIDE / longest)) for side in image.size]
        small = np.asarray(image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS))
        raw = small[np.newaxis] if small.ndim == 2 else small.transpose(2, 0, 1)
    return base64.b64encode(encode_png(raw)).decode()


def _cells(raw: np.ndarray, spec: TableInput, shown: list[str]) -> dict[str, CellValue]:
    cells = decode_row(raw, spec)
    return {name: _short(cells[name]) for name in shown}


def _short(cell: CellValue) -> CellValue:
    long = isinstance(cell, str) and len(cell) > _LONGEST_CELL
    return f"{str(cell)[: _LONGEST_CELL - 1]}…" if long else cell


def column_importance(
    served: Model, dataset: Dataset, batch_size: int, threshold: float, flops: int
) -> tuple[ColumnImportance, ...]:
    """What accuracy and log loss of test rows lose when a column's cells are shuffled.

    Permutation importance (Breiman 2001; Fisher, Rudin and Dominici 2019), five shuffles of at most
    2,000 rows spread over the test part. Where so many answers of so large a model take too long,
    every column is looked at with fewer rows and one shuffle, and the 20 that matter most by that
    more closely. Those looked at closely come first; among them, what raises log loss most.
    """
    spec, test = dataset.input, dataset.test
    assert isinstance(spec, TableInput)
    answers = _FLOPS // max(1, flops)
    columns = list(range(len(spec.columns)))
    most = min(len(test), _MOST_ROWS)

    def look(chosen: list[int], rows: int, shuffles: int) -> list[ColumnImportance]:
        found = _shuffled(served, dataset, chosen, rows, shuffles, batch_size, threshold)
        return sorted(found, key=lambda entry: -entry.log_loss.mean)

    rows = min(most, answers // (len(columns) * SHUFFLES))
    if rows == most or len(columns) <= _CLOSELY:
        return tuple(look(columns, max(rows, min(most, _LEAST_ROWS)), SHUFFLES))
    screened = look(columns, min(most, max(_LEAST_SCREENED, answers // len(columns))), 1)
    names = {column.name: place for place, column in enumerate(spec.columns)}
    closer = [names[entry.column] for entry in screened[:_CLOSELY]]
    rows = min(most, max(_LEAST_ROWS, answers // (_CLOSELY * SHUFFLES)))
    return (*look(closer, rows, SHUFFLES), *screened[_CLOSELY:])


def _shuffled(
    served: Model,
    dataset: Dataset,
    columns: list[int],
    rows: int,
    shuffles: int,
    batch_size: int,
    threshold: float,
) -> Iterator[ColumnImportance]:
    spec, test = dataset.input, dataset.test
    assert isinstance(spec, TableInput) and isinstance(test.raw, np.ndarray)
    chosen = np.unique(np.linspace(0, len(test) - 1, rows).astype(np.int64))
    raw, labels = test.raw[chosen], test.labels[chosen]
    generator = np.random.default_rng(0)
    # The same for every column.
    orders = [generator.permutation(len(chosen)) for _ in range(shuffles)]
    ends = np.cumsum([column.width for column in spec.columns])

    def figures(table: np.ndarray) -> tuple[float, float]:
        _, probabilities = run_in_batches(served, table, batch_size)
        right = float((decide(probabilities, threshold) == labels).mean())
        return right, float(log_losses(probabilities, labels).mean())

    accuracy, log_loss = figures(raw)
    for column in columns:
        table = raw.copy()
        place = slice(ends[column] - spec.columns[column].width, ends[column])
        found = []
        for order in orders:
            table[:, place] = raw[order, place]
            found.append(figures(table))
        yield ColumnImportance(
            column=spec.columns[column].name,
            accuracy=_spread([accuracy - right for right, _ in found]),
            log_loss=_spread([loss - log_loss for _, loss in found]),
            rows=len(chosen),
            shuffles=shuffles,
        )


def _spread(values: list[float]) -> Spread:
    mean, low, high = (
        float(f"{value:.6g}") for value in (float(np.mean(values)), min(values), max(values))
    )
    return Spread(mean=mean, low=low, high=high)
