"""Labelled rows: where they come from, and how they are split.

The test part is used once, after training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.arrow import encode_table
from artifacts.errors import DataError, nearest
from artifacts.inputs import ImageInput, TableInput
from artifacts.manifest import DataInfo
from training.cifar10 import load_cifar10
from training.columns import describe, infer_columns, read_labels, some
from training.idx import read_idx_set
from training.pictures import Pictures, find_leaks, load_pictures
from training.recipe import EMBEDDED, DataConfig
from training.table_files import read_tables

DIGITS = tuple(str(digit) for digit in range(10))
# https://github.com/zalandoresearch/fashion-mnist#labels
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Part:
    """raw: [N, *input shape] uint8 or float64; labels: int64 [N], indices of classes.

    digests: one for each row's raw input, where rows may not all be in memory.
    """

    raw: np.ndarray | Pictures
    labels: np.ndarray
    digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A labelled set, split. `labels` are the class names, in the order of their indices.

    notes: what was left out or found, in words for the user.
    """

    source: str
    input: ImageInput | TableInput
    labels: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def info(self) -> DataInfo:
        """What the manifest says of the data."""
        digest = hashlib.sha256()
        for name, part in self.parts.items():
            # The digests, so that it does not matter whether pictures fit in memory.
            rows = part.raw if part.digests is None else part.digests
            assert isinstance(rows, np.ndarray)
            for array in (rows, part.labels):
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        counts = np.bincount(
            np.concatenate([part.labels for part in self.parts.values()]),
            minlength=len(self.labels),
        )
        return DataInfo(
            source=self.source,
            fingerprint=digest.hexdigest(),
            rows={name: len(part) for name, part in self.parts.items()},
            label_counts=dict(zip(self.labels, counts.tolist(), strict=True)),
            notes=self.notes,
        )


def load_dataset(config: DataConfig) -> Dataset:
    """The set that `[data]` names, checked and split. Raises DataError."""
    if config.source in EMBEDDED and config.path is not None:
        raise DataError(
            f"data.path: {config.source} is embedded and takes no folder; for data of your own: "
            "parityline train table or images"
        )
    if config.source != "table" and config.target is not None:
        raise DataError(
            f"data.target: {config.source} is no table and has no columns to choose from, found "
            f"{config.target!r}"
        )
    if config.source == "table":
        return load_table(config)
    if config.source in {"images", "cifar10"}:
        return _load_pictures(config)
    if config.source == "breast-cancer":
        config, table = breast_cancer_table(config)
        return dataset_of_tables(config, {"train": table})
    if config.source == "digits":
        spec, labels, whole = digits()
        return assemble(config, spec, labels, {"train": whole})
    labels = FASHION if config.source == "fashion-mnist" else DIGITS
    folder = Path(config.path) if config.path is not None else None
    raw, y, test_raw, test_y = read_idx_set(config.source, folder)
    check_labels(y, labels, "the training labels")
    check_labels(test_y, labels, "the test labels")
    height, width = raw.shape[1:]
    parts = {
        "train": Part(raw[:, np.newaxis], y),
        "test": Part(test_raw[:, np.newaxis], test_y),
    }
    return assemble(config, ImageInput(channels=1, height=height, width=width), labels, parts)


def assemble(
    config: DataConfig,
    spec: ImageInput | TableInput,
    labels: tuple[str, ...],
    parts: dict[str, Part],
    notes: tuple[str, ...] = (),
) -> Dataset:
    """A Dataset of the parts that there are; those that are not are split off the training one."""
    rows = split_rows(config, labels, {name: part.labels for name, part in parts.items()})
    train, validation, test = (take(parts.get(name, parts["train"]), rows[name]) for name in _PARTS)
    return Dataset(config.source, spec, labels, train, validation, test, notes)


def split_rows(
    config: DataConfig, labels: tuple[str, ...], parts: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Each part's row numbers, in the part of that name in `parts`, or else in "train".

    parts: label indices, int64, by part; "train" is always there.
    """
    y = parts["train"]
    rows = np.arange(len(y))
    if config.limit is not None and config.limit < len(y):
        rows = split(y, labels, (config.limit / len(y),), config.seed)[1]
    fractions = {
        name: fraction
        for name, fraction in (("validation", config.val_fraction), ("test", config.test_fraction))
        if name not in parts
    }
    pieces = split(y[rows], labels, tuple(fractions.values()), config.seed)
    taken = dict(zip(("train", *fractions), (rows[piece] for piece in pieces), strict=True))
    return {name: taken[name] if name in taken else np.arange(len(parts[name])) for name in _PARTS}


def take(part: Part, rows: np.ndarray) -> Part:
    """Some rows of a part."""
    raw = part.raw[rows] if isinstance(part.raw, np.ndarray) else part.raw.select(rows)
    return Part(raw, part.labels[rows], None if part.digests is None else part.digests[rows])


def load_table(config: DataConfig) -> Dataset:
    """A table from files, its columns' types inferred. Raises DataError naming file and column."""
    if config.path is None:
        raise DataError("a table needs --data FILE and --target COLUMN")
    tables = read_tables(Path(config.path), config.test_path and Path(config.test_path))
    if config.target is None:
        names = some(tables["train"].column_names)
        raise DataError(f"{config.path}: a table needs --target COLUMN; there are: {names}")
    try:
        dataset = dataset_of_tables(config, tables)
    except DataError as error:
        raise DataError(f"{config.path}: {error}") from error
    return dataclasses.replace(dataset, source=Path(config.path).name)


def dataset_of_tables(config: DataConfig, tables: dict[str, pa.Table]) -> Dataset:
    """Tables by part, "train" at least, as a Dataset."""
    target = config.target
    assert target is not None
    for name, table in tables.items():
        if target not in table.column_names:
            raise DataError(
                f"{name}: no column {target!r} (data.target); there are: "
                f"{some(table.column_names)}{nearest(target, table.column_names)}"
            )
    y, labels = read_labels(tables["train"], target)
    label_indices = {"train": y}
    for name in tables.keys() - {"train"}:
        label_indices[name] = read_labels(tables[name], target, labels, name)[0]
    columns, notes = infer_columns(tables["train"], config)
    rows = split_rows(config, labels, label_indices)
    spec = describe(columns, tables["train"], rows["train"], config)
    parts = {}
    for name in _PARTS:
        source = name if name in tables else "train"
        raw, bad = encode_table(tables[source].take(pa.array(rows[name])), spec)
        if bad:
            row = min(bad)
            raise DataError(
                f"{source}: row {int(rows[name][row])}: {bad[row]} (bad rows: {len(bad)})"
            )
        parts[name] = Part(raw, label_indices[source][rows[name]])
    return Dataset(config.source, spec, labels, **parts, notes=tuple(notes))


def _load_pictures(config: DataConfig) -> Dataset:
    memory = (
        config.memory_mb * 2**20
        if config.memory_mb is not None
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    )
    path = Path(config.path) if config.path is not None else None
    options: dict[str, Any] = {"memory_bytes": memory, "threads": config.workers or None}
    shape: dict[str, Any] = {
        "size": config.size, "channels": config.channels, "fit": config.fit,
        "interpolation": config.interpolation, "resize": config.resize,
        "skip_bad": config.skip_bad,
    }  # fmt: skip
    if config.source == "cifar10":
        found = load_cifar10(path, **options)
    elif path is None:
        raise DataError("images need --data FOLDER")
    else:
        found = load_pictures(path, **shape, **options)
    parts = {name: Part(p.raw, p.labels, p.digests) for name, p in found.parts.items()}
    dataset = assemble(config, found.input, found.labels, parts, found.notes)
    named = split_rows(config, found.labels, {name: p.labels for name, p in parts.items()})
    everyone = {
        name: (
            found.parts.get(name, found.parts["train"]).digests[rows],
            [found.parts.get(name, found.parts["train"]).names[row] for row in rows],
        )
        for name, rows in named.items()
    }
    notes = (*found.notes, *find_leaks(everyone))
    return dataclasses.replace(dataset, source=found.source, notes=notes)


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


def digits() -> tuple[ImageInput, tuple[str, ...], Part]:
    """scikit-learn's 1,797 handwritten digits, all in one part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 grey levels, 0 to 16, spread over 0 to 255.
    raw = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    whole = Part(raw, bunch.target.astype(np.int64))
    return ImageInput(channels=1, height=8, width=8), DIGITS, whole


def breast_cancer_table(config: DataConfig) -> tuple[DataConfig, pa.Table]:
    """scikit-learn's 569 tumours with the label column "diagnosis", and what to read it with."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    columns = {
        str(name): pa.array(values)
        for name, values in zip(bunch.feature_names, bunch.data.T, strict=True)
    }
    columns["diagnosis"] = pa.array([str(bunch.target_names[index]) for index in bunch.target])
    settings = {"target": "diagnosis", "missing": "reject"}
    return config.model_copy(update=settings), pa.table(columns)
