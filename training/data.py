"""Labelled rows: where they come from, how they are split, and what preprocessing they imply.

Statistics come from the training part alone. The test part is used once, after training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import Column, ImageInput, TableInput
from artifacts.manifest import DataInfo
from artifacts.steps import Clip, Fill, Normalize, Scale, Step
from training.idx import read_idx_set
from training.recipe import DataConfig

DIGITS = tuple(str(digit) for digit in range(10))
# https://github.com/zalandoresearch/fashion-mnist#labels
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Standard deviations that a cell may be away from its column's mean before it is cut.
CELL_LIMIT = 30.0


@dataclass(frozen=True)
class Part:
    """raw: [N, *input shape] uint8 or float64; labels: int64 [N], indices of classes."""

    raw: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A labelled set, split. `labels` are the class names, in the order of their indices."""

    source: str
    input: ImageInput | TableInput
    labels: tuple[str, ...]
    train: Part
    validation: Part
    test: Part

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def info(self) -> DataInfo:
        """What the manifest says of the data."""
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            for array in (part.raw, part.labels):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        counts = np.bincount(
            np.concatenate([part.labels for part in self.parts.values()]),
            minlength=len(self.labels),
        )
        return DataInfo(
            source=self.source,
            fingerprint=digest.hexdigest(),
            rows={name: len(part) for name, part in self.parts.items()},
            label_counts=dict(zip(self.labels, counts.tolist(), strict=True)),
        )


def load_dataset(config: DataConfig) -> Dataset:
    """The set that `[data]` names, checked and split. Raises DataError."""
    if config.source in {"digits", "breast-cancer"}:
        if config.path is not None:
            raise DataError(f"data.path: {config.source} is embedded and takes no folder")
        raw, y, spec, labels = _digits() if config.source == "digits" else _breast_cancer()
        check_labels(y, labels, config.source)
        train, validation, test = split(
            y, labels, (config.val_fraction, config.test_fraction), config.seed
        )
        parts = [Part(raw[rows], y[rows]) for rows in (train, validation, test)]
    else:
        labels = FASHION if config.source == "fashion-mnist" else DIGITS
        folder = Path(config.path) if config.path is not None else None
        raw, y, test_raw, test_y = read_idx_set(config.source, folder)
        check_labels(y, labels, "the training labels")
        check_labels(test_y, labels, "the test labels")
        train, validation = split(y, labels, (config.val_fraction,), config.seed)
        height, width = raw.shape[1:]
        spec = ImageInput(channels=1, height=height, width=width)
        parts = [
            Part(raw[train, np.newaxis], y[train]),
            Part(raw[validation, np.newaxis], y[validation]),
            Part(test_raw[:, np.newaxis], test_y),
        ]
    if isinstance(spec, TableInput):
        spec = _with_ranges(spec, parts[0].raw)
    return Dataset(config.source, spec, labels, *parts)


def preprocessing(dataset: Dataset) -> tuple[Step, ...]:
    """The steps inside the graph, with statistics of the training part.

    Images: / 255, then mean and standard deviation for each channel. Tables: median for missing
    cells, standardisation in float64, a cut at +-CELL_LIMIT.
    """
    raw = dataset.train.raw
    if isinstance(dataset.input, ImageInput):
        counts = np.stack(
            [np.bincount(raw[:, c].ravel(), minlength=256) for c in range(raw.shape[1])]
        )
        values = np.arange(256) / 255
        mean = counts @ values / counts.sum(axis=1)
        variance = counts @ values**2 / counts.sum(axis=1) - mean**2
        std = np.sqrt(np.maximum(variance, 0))
        std[std < 1e-6] = 1.0
        return (
            Scale(factor=1 / 255),
            Normalize(mean=tuple(mean.tolist()), std=tuple(std.tolist())),
        )
    median = np.nanmedian(raw, axis=0)
    filled = np.where(np.isnan(raw), median, raw)
    mean, std = filled.mean(axis=0), filled.std(axis=0)
    # A constant column's deviation is rounding, not zero.
    std[std <= 1e-9 * np.abs(mean)] = 1.0
    std[std == 0] = 1.0
    return (
        Fill(values=tuple(median.tolist())),
        Normalize(mean=tuple(mean.tolist()), std=tuple(std.tolist())),
        Clip(limit=CELL_LIMIT),
    )


def split(
    labels: np.ndarray, names: tuple[str, ...], fractions: tuple[float, ...], seed: int
) -> tuple[np.ndarray, ...]:
    """Seeded, stratified row numbers: what remains (for training), then one part a fraction.

    Each class gives every part its share, rounded, and at least one row. Returns sorted int64
    arrays that together hold each row once. Raises DataError for a class with too few rows.
    """
    if sum(fractions) >= 1:
        raise DataError(f"data: the fractions {fractions} leave no rows for training")
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    for index, name in enumerate(names):
        rows = generator.permutation(np.flatnonzero(labels == index))
        sizes = [max(1, round(fraction * len(rows))) for fraction in fractions]
        if len(rows) - sum(sizes) < 1:
            rows_text = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
            raise DataError(
                f"class {name!r}: {rows_text}, too few to split into {len(parts)} parts "
                f"(at least {len(parts)} are needed)"
            )
        start = 0
        for part, size in zip(parts[1:], sizes, strict=True):
            part.append(rows[start : start + size])
            start += size
        parts[0].append(rows[start:])
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def check_labels(labels: np.ndarray, names: tuple[str, ...], what: str) -> None:
    """Raise DataError for a label out of range, or fewer than two classes with rows."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{what}: row {row}: expected a label from 0 to {len(names) - 1}, "
            f"found {int(labels[row])} (labels out of range: {len(outside)})"
        )
    present = np.unique(labels)
    if len(present) < 2:
        found = [names[index] for index in present]
        raise DataError(f"{what}: expected at least two classes, found {found}")


def _digits() -> tuple[np.ndarray, np.ndarray, ImageInput, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 grey levels, 0 to 16, spread over 0 to 255.
    raw = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    return raw, bunch.target.astype(np.int64), ImageInput(channels=1, height=8, width=8), DIGITS


def _breast_cancer() -> tuple[np.ndarray, np.ndarray, TableInput, tuple[str, ...]]:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    spec = TableInput(
        columns=tuple(
            Column(name=str(name), low=0.0, high=0.0, typical=0.0) for name in bunch.feature_names
        )
    )
    labels = tuple(str(name) for name in bunch.target_names)
    return bunch.data.astype(np.float64), bunch.target.astype(np.int64), spec, labels


def _with_ranges(spec: TableInput, train_raw: np.ndarray) -> TableInput:
    columns = tuple(
        column.model_copy(
            update={
                "missing": "fill" if np.isnan(values).any() else "reject",
                "low": float(np.nanmin(values)),
                "high": float(np.nanmax(values)),
                "typical": float(np.nanmedian(values)),
            }
        )
        for column, values in zip(spec.columns, train_raw.T, strict=True)
    )
    return TableInput(columns=columns)
