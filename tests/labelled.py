"""Small labelled pictures, made on the spot, and how tests load them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from training.pictures import PictureSet, load_pictures

MUCH = 2**30


def load(path: Path, **options: object) -> PictureSet:
    settings = {
        "size": None,
        "channels": None,
        "fit": "crop",
        "interpolation": "bilinear",
        "skip_bad": False,
        "memory_bytes": MUCH,
        "threads": 2,
        **options,
    }
    return load_pictures(path, **settings)


def noise(seed: int, height: int = 6, width: int = 8, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, (height, width), dtype=np.uint16))
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(generator.integers(0, 256, (height, width, *bands), dtype=np.uint8))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def folder(root: Path, *places: str, rows: int = 3) -> Path:
    """Pictures 0.png, 1.png ... in each class folder, all different."""
    for number, place in enumerate(places):
        for row in range(rows):
            save(root / place / f"{row}.png", noise(1000 * number + row))
    return root


def png(seed: int, height: int = 6, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    noise(seed, height, width).save(buffer, "PNG")
    return buffer.getvalue()
