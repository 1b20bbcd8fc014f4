"""The models that are measured, trained by the command line into a store that is kept.

Speed does not depend on what a network has learnt: one epoch on a part of the data.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from artifacts.inputs import ImageInput
from artifacts.pixels import decode_image
from artifacts.predictor import Predictor, open_predictor
from artifacts.references import open_reference, promoted_version
from training.idx import read_idx_set

ROOT = Path(__file__).parent.parent.parent
MLP, RESNET, TABLE = "speed-mlp", "speed-resnet18", "speed-table"
_PICTURES_A_CLASS = 12
_QUICK = ["--no-preflight", "--set", "train.epochs=1", "--set", "train.device=cpu"]


def open_mlp(store: Path, data: Path) -> Predictor:
    """784-128-64-10 on Fashion-MNIST; data holds the idx files."""
    options = ["--data", str(data), "--set", "model.hidden=[128,64]"]
    return _opened(store, MLP, ["fashion-mnist", *options, "--set", "data.limit=6000"])


def open_resnet(store: Path, images: Path) -> Predictor:
    """torchvision's resnet18 from random weights on 224 x 224; images has a folder for each class.

    The gate takes a minute for each 100 held-out pictures: a few of each class are enough.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if promoted_version(store, RESNET) is None:
            for picture in some_pictures(images, _PICTURES_A_CLASS):
                folder = Path(temporary) / picture.parent.name
                folder.mkdir(exist_ok=True)
                shutil.copy(picture, folder)
        options = ["--data", temporary, "--set", "model.kind=torchvision:resnet18"]
        return _opened(store, RESNET, ["images", *options])


def open_table(store: Path, tabular: Path) -> Predictor:
    """The recipe for tables on adult.csv, which is in tabular."""
    options = ["--data", str(tabular / "adult.csv"), "--target", "income"]
    return _opened(store, TABLE, ["table", *options])


def some_pictures(images: Path, a_class: int) -> list[Path]:
    """The first JPEG pictures of each class, by name."""
    found: list[Path] = []
    for folder in sorted(entry for entry in images.iterdir() if entry.is_dir()):
        files = sorted(
            file for file in folder.iterdir() if file.suffix.lower() in {".jpg", ".jpeg"}
        )
        found += files[:a_class]
    if not found:
        raise SystemExit(f"{images}: expected a folder of JPEG pictures for each class, found none")
    return found


def image_bodies(
    mlp: Predictor, data: Path, *, bodies: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Test images, uint8 [bodies, rows, 1, 28, 28], with their right probabilities."""
    test = read_idx_set("fashion-mnist", data)[2]
    raw = np.ascontiguousarray(test[: bodies * rows, np.newaxis])
    probabilities = mlp.run(raw)[1]
    return raw.reshape(bodies, rows, *raw.shape[1:]), probabilities.reshape(bodies, rows, -1)


def picture_bodies(resnet: Predictor, images: Path) -> tuple[list[bytes], np.ndarray]:
    """Two JPEG files of each class, with their right probabilities, float32 [bodies, 1, labels]."""
    spec = resnet.manifest.input
    assert isinstance(spec, ImageInput)
    encoded = [file.read_bytes() for file in some_pictures(images, 2)]
    raw = np.stack([decode_image(picture, spec) for picture in encoded])
    return encoded, resnet.run(raw)[1][:, np.newaxis]


def _opened(store: Path, name: str, recipe: list[str]) -> Predictor:
    if promoted_version(store, name) is None:
        command = [sys.executable, "-m", "parityline", "train", *recipe, "--name", name, *_QUICK]
        kept = {"PARITYLINE_STORE": str(store), "PARITYLINE_TRACK": "0", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **kept})
    return open_predictor(open_reference(store, name), backend="onnx", device="cpu", threads=1)
