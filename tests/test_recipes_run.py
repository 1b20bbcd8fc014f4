"""Recipes that are meant for a GPU run on the CPU too, from files to a released bundle."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifacts.references import open_reference
from tests.conftest import parityline
from tests.test_data import write_idx_set
from training.cifar10 import CLASSES
from training.recipe import load_recipe

BRIEFLY = (
    "data.val_fraction=0.2", "train.epochs=1", "train.threads=1", "train.batch_size=32",
    "export.max_batch_size=64",
)  # fmt: skip


def write_cifar10(folder: Path) -> None:
    """A few rows in the Parquet layout of Hugging Face."""
    generator = np.random.default_rng(0)
    names = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": names}})}
    folder.mkdir()
    for part, rows in (("train", 80), ("test", 20)):
        encoded = []
        for _ in range(rows):
            buffer = io.BytesIO()
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(encoded, kind), "label": np.arange(rows) % 10})
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{part}.parquet")


SLIM = ("model.channels=[16,32,64,128]",)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cifar10-resnet", SLIM),
        pytest.param("cifar10-resnet", (), marks=pytest.mark.slow),
        pytest.param("fashion-mnist-resnet", (), marks=pytest.mark.slow),
    ],
)
def test_one_epoch_on_the_cpu_ends_in_a_released_bundle(
    name: str, changes: tuple[str, ...], tmp_path: Path
) -> None:
    if name.startswith("cifar10"):
        write_cifar10(tmp_path / "data")
    else:
        write_idx_set(tmp_path / "data", size=(28, 28))
    settings = [word for setting in (*BRIEFLY, *changes) for word in ("--set", setting)]
    done = parityline(
        "train", name, "--data", str(tmp_path / "data"), *settings,
        PARITYLINE_STORE=str(tmp_path / "store"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = open_reference(tmp_path / "store", name).manifest
    assert manifest.network == load_recipe(name, changes).model
    assert set(manifest.parity) == {"model.onnx", "model.ts", "model.pt2"}
    assert manifest.recipe["train"]["precision"] in {"float32", "bfloat16"}
    if name.startswith("cifar10"):
        assert manifest.labels == CLASSES and manifest.input.shape == (3, 32, 32)
