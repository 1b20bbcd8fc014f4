from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from artifacts.errors import DataError
from tests.labelled import MUCH, png
from tests.test_picture_tables import write
from training.cifar10 import CLASSES, load_cifar10


def test_cifar10_is_read_from_parquet(tmp_path: Path) -> None:
    for name in ("train", "test"):
        images = [png(row, 32, 32) for row in range(20)]
        labels = [row % 10 for row in range(20)]
        write(tmp_path / f"{name}.parquet", labels, images=images, names=None, column="img")
    loaded = load_cifar10(tmp_path, memory_bytes=MUCH, threads=1)
    assert loaded.source == "cifar10" and loaded.labels == CLASSES
    assert loaded.parts["test"].raw.shape == (20, 3, 32, 32)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DataError, match="expected CIFAR-10's classes .* in train and test, found"):
        load_cifar10(tmp_path, memory_bytes=MUCH)


def test_cifar10_is_read_as_torchvision_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    for name, batch in (
        ("data_batch_1", {"data": pixels, "labels": list(range(10))}),
        ("test_batch", {"data": pixels[::-1], "labels": list(range(10))[::-1]}),
        ("batches.meta", {"label_names": list(CLASSES)}),
    ):
        (folder / name).write_bytes(pickle.dumps(batch))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    loaded = load_cifar10(tmp_path, memory_bytes=0)
    np.testing.assert_array_equal(loaded.parts["train"].raw, pixels.reshape(10, 3, 32, 32))
    assert loaded.parts["test"].labels.tolist() == list(range(10))[::-1]
    assert loaded.parts["train"].digests.tolist() == loaded.parts["test"].digests.tolist()[::-1]
    (folder / "test_batch").write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match="cifar10 could not be read from .*corrupted.*--data"):
        load_cifar10(tmp_path, memory_bytes=0)


def test_cifar10_that_is_nowhere_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    def no_network(**_: object) -> None:
        raise RuntimeError("Error downloading:\nno route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "CIFAR10", no_network)
    with pytest.raises(DataError, match="not be downloaded to data/cifar10 .*--data") as error:
        load_cifar10(None, memory_bytes=MUCH)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="none: expected a directory, found none"):
        load_cifar10(tmp_path / "none", memory_bytes=MUCH)
    with pytest.raises(DataError, match="expected .parquet files or a folder cifar-10-batches-py"):
        load_cifar10(tmp_path, memory_bytes=MUCH)
