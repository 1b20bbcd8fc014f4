from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits

from artifacts.configs import LinearNetwork, TableNetwork
from artifacts.errors import DataError
from training.data import (
    Dataset,
    Part,
    check_labels,
    load_dataset,
    split,
)
from training.encoding import preprocessing
from training.idx import read_idx
from training.recipe import DataConfig

FILES = {
    "train-images-idx3-ubyte": (60, 3),
    "train-labels-idx1-ubyte": (60, 1),
    "t10k-images-idx3-ubyte": (20, 3),
    "t10k-labels-idx1-ubyte": (20, 1),
}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, *, compressed: bool = True, size: tuple[int, int] = (6, 5)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for name, (rows, dimensions) in FILES.items():
        if dimensions == 3:
            array = generator.integers(0, 256, (rows, *size))
        else:
            array = np.arange(rows) % 10
        data = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=6),
    fractions=st.sampled_from([(0.1,), (0.3,), (0.15, 0.2), (0.05, 0.4)]),
    seed=st.integers(0, 2**31),
)
def test_a_split_holds_each_row_once_and_each_class_in_every_part(
    counts: list[int], fractions: tuple[float, ...], seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    names = tuple(str(index) for index in range(len(counts)))
    parts = split(labels, names, fractions, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert set(labels[part]) == set(range(len(counts)))
    again = split(labels, names, fractions, seed)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    for part, fraction in zip(parts[1:], fractions, strict=True):
        for index, count in enumerate(counts):
            assert (labels[part] == index).sum() == max(1, round(fraction * count))


def test_another_seed_gives_another_split() -> None:
    labels = np.arange(200) % 2
    one, other = (split(labels, ("a", "b"), (0.5,), seed)[1] for seed in (0, 1))
    assert one.tolist() != other.tolist()


def test_a_class_with_too_few_rows_to_split_is_named() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    with pytest.raises(DataError, match="class 'rare': 2 rows, too few to split into 3 parts"):
        split(labels, ("common", "rare"), (0.15, 0.2), 0)


def test_labels_out_of_range_and_single_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 2: expected a label from 0 to 1, found 7"):
        check_labels(np.array([0, 1, 7]), ("a", "b"), "labels")
    with pytest.raises(DataError, match=r"at least two classes, found \['b'\]"):
        check_labels(np.array([1, 1]), ("a", "b"), "labels")


@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_found_in_every_layout(tmp_path: Path, layout: str, compressed: bool) -> None:
    write_idx_set(tmp_path / layout, compressed=compressed)
    dataset = load_dataset(DataConfig(source="fashion-mnist", path=str(tmp_path), val_fraction=0.2))
    assert dataset.input.shape == (1, 6, 5)
    assert {name: len(part) for name, part in dataset.parts.items()} == {
        "train": 50, "validation": 10, "test": 20,
    }  # fmt: skip


def test_idx_faults_name_the_file_and_what_was_expected(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((4, 2, 2)))
    cases = {
        b"\x00\x00\x09\x03" + good[4:]: "expected the idx magic 00000803.*found 00000903",
        b"": "found an empty file",
        good[:8]: "cut short in its header",
        good[:-1]: "expected 16 bytes.*found 15 bytes",
        good + b"x": "expected 16 bytes.*found more",
        good[:4] + b"\xff" * 12: "its header says",
    }
    path = tmp_path / "images"
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"images: .*{message}"):
            read_idx(path, dimensions=3)
    broken = tmp_path / "images.gz"
    broken.write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(DataError, match=r"images\.gz: cannot be read"):
        read_idx(broken, dimensions=3)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    config = DataConfig(source="mnist", path=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"data folder .*none: expected a directory"):
        load_dataset(config)
    with pytest.raises(DataError, match="expected train-images-idx3-ubyte"):
        load_dataset(DataConfig(source="mnist", path=str(tmp_path)))
    write_idx_set(tmp_path)
    labels = np.arange(60) % 10
    labels[31] = 11
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    with pytest.raises(DataError, match="row 31: expected a label from 0 to 9, found 11"):
        load_dataset(DataConfig(source="mnist", path=str(tmp_path)))


def test_embedded_sets_take_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits is embedded"):
        load_dataset(DataConfig(source="digits", path=str(tmp_path)))


def with_other_held_out(dataset: Dataset) -> Dataset:
    def changed(part: Part) -> Part:
        return Part(part.raw * 0, part.labels)

    return Dataset(
        dataset.source, dataset.input, dataset.labels,
        dataset.train, changed(dataset.validation), changed(dataset.test),
    )  # fmt: skip


@pytest.mark.parametrize("source", ["digits", "breast-cancer"])
def test_statistics_come_from_the_training_part_alone(source: str) -> None:
    dataset = load_dataset(DataConfig(source=source))
    model = TableNetwork(bins=8) if source == "breast-cancer" else LinearNetwork()
    steps = preprocessing(dataset, model)
    assert steps == preprocessing(with_other_held_out(dataset), model)
    raw = dataset.train.raw.astype(np.float64)
    if source == "digits":
        np.testing.assert_allclose(steps[1].mean, (raw / 255).mean(axis=(0, 2, 3)), rtol=1e-9)
        np.testing.assert_allclose(steps[1].std, (raw / 255).std(axis=(0, 2, 3)), rtol=1e-9)
        return
    for column, entry in zip(raw.T, steps[0].inputs, strict=True):
        assert entry.center == entry.fill == np.median(column)
        quarters = np.quantile(column, [0.25, 0.75])
        assert entry.scale == pytest.approx((quarters[1] - quarters[0]) / 1.349)
        assert entry.edges[0] == column.min() and entry.edges[-1] == column.max()
        counts = np.histogram(column, entry.edges)[0]
        assert len(counts) == 8 and counts.max() < 3 * len(column) / 8


def test_the_fingerprint_is_of_rows_labels_and_split() -> None:
    first = load_dataset(DataConfig(source="digits")).info().fingerprint
    assert load_dataset(DataConfig(source="digits")).info().fingerprint == first
    assert load_dataset(DataConfig(source="digits", seed=1)).info().fingerprint != first
    dataset = load_dataset(DataConfig(source="digits"))
    dataset.test.raw[0, 0, 0, 0] ^= 1
    assert dataset.info().fingerprint != first


def test_digits_are_real_and_complete() -> None:
    dataset = load_dataset(DataConfig(source="digits"))
    assert sum(len(part) for part in dataset.parts.values()) == 1797
    assert dataset.train.raw.dtype == np.uint8 and dataset.train.raw.max() == 255


def test_ranges_come_from_the_training_part_alone() -> None:
    dataset = load_dataset(DataConfig(source="breast-cancer"))
    columns, raw = dataset.input.columns, dataset.train.raw
    assert [column.low for column in columns] == raw.min(axis=0).tolist()
    assert [column.high for column in columns] == raw.max(axis=0).tolist()
    assert [column.typical for column in columns] == np.median(raw, axis=0).tolist()
    # Otherwise this shows nothing.
    assert (dataset.test.raw.max(axis=0) > raw.max(axis=0)).any()


def rows_in(*parts: Part) -> list[bytes]:
    return sorted(
        row.tobytes() + bytes([label])
        for part in parts
        for row, label in zip(part.raw, part.labels, strict=True)
    )


@pytest.mark.parametrize("source", ["digits", "breast-cancer"])
def test_the_parts_are_the_set_each_row_once(source: str) -> None:
    dataset = load_dataset(DataConfig(source=source))
    if source == "digits":
        bunch = load_digits()
        raw = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
        names = [str(index) for index in range(10)]
    else:
        bunch = load_breast_cancer()
        raw = bunch.data
        names = bunch.target_names.tolist()
    labels = np.array([dataset.labels.index(names[index]) for index in bunch.target])
    assert rows_in(*dataset.parts.values()) == rows_in(Part(raw, labels))


def test_the_test_part_is_the_test_files(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    dataset = load_dataset(DataConfig(source="mnist", path=str(tmp_path), val_fraction=0.2))
    for prefix, parts in (
        ("train", (dataset.train, dataset.validation)),
        ("t10k", (dataset.test,)),
    ):
        raw = read_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        assert rows_in(*parts) == rows_in(Part(raw, labels.astype(np.int64)))


def test_a_set_that_cannot_be_downloaded_says_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def no_network(**_: object) -> None:
        raise RuntimeError("Error downloading:\nTried a mirror, got:\nno route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "FashionMNIST", no_network)
    with pytest.raises(DataError, match="could not be downloaded to data .*--data") as error:
        load_dataset(DataConfig(source="fashion-mnist"))
    assert "\n" not in str(error.value)
    # What is there already is not downloaded again.
    write_idx_set(tmp_path / "data" / "FashionMNIST" / "raw", compressed=False)
    config = DataConfig(source="fashion-mnist", val_fraction=0.2)
    assert len(load_dataset(config).test) == 20
