"""What a request costs before and after the model: pictures to pixels, JSON to arrays and back.

    python benchmarks/decoding.py --images FOLDER

FOLDER holds `imagenette224` (224 x 224 JPEGs) and `hymenoptera` (photographs). Beside each number
stands what it is compared with: of a picture, Pillow alone by the shortest way to such an array; of
JSON, parsing without looking. Replaces its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from artifacts.inputs import CategoryColumn, Column, ImageInput, TableInput
from artifacts.pixels import claimed_size, decode_image, decode_images, encode_png
from benchmarks.results import machine, write
from serving.wire import RequestDecoder, response_encoder

TITLE = "## Decoding and JSON (decoding.py)"
ROUNDS = 30
LABELS = tuple(f"label {index}" for index in range(10))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, type=Path)
    folder: Path = parser.parse_args().images
    rng = np.random.default_rng(0)
    write(
        TITLE,
        [
            f"{machine()} One thread; for each input the least of {ROUNDS} times, then the mean "
            "over the inputs.",
            "",
            "| picture, microseconds | `decode_image` | of a request | Pillow to an array, neither "
            "resized nor looked at | `claimed_size` |",
            "|---|---|---|---|---|",
            *pictures(folder, rng),
            "",
            "| request | microseconds | `msgspec.json.decode`, untyped |",
            "|---|---|---|",
            *requests(rng),
            "",
            "| answer, 10 labels | microseconds |",
            "|---|---|",
            *answers(rng),
        ],
    )


def pictures(folder: Path, rng: np.random.Generator) -> list[str]:
    """Lines for JPEGs, photographs and small PNGs."""
    small = [path.read_bytes() for path in sorted(folder.glob("imagenette224/**/*.JPEG"))[::30]]
    photographs = [path.read_bytes() for path in sorted(folder.glob("hymenoptera/**/*.jpg"))[::40]]
    square = ImageInput(channels=3, height=224, width=224)
    cut = square.model_copy(update={"resize": 256})
    cases: list[tuple[str, ImageInput, list[bytes]]] = [
        ("224 x 224 JPEG", square, small),
        ("photograph, to 256 and cut to 224", cut, photographs),
    ]
    for side in (28, 8):
        spec = ImageInput(channels=1, height=side, width=side)
        strokes = rng.integers(0, 256, (20, 1, side, side), np.uint8)
        strokes[rng.random(strokes.shape) < 0.6] = 0
        cases.append((f"{side} x {side} gray PNG", spec, [encode_png(one) for one in strokes]))
    lines = []
    for name, spec, files in cases:
        ours, together, pillow, claimed = microseconds(
            files,
            lambda data, spec=spec: decode_image(data, spec),
            lambda data, spec=spec: decode_images([data], spec, max_total_pixels=10**8),
            by_pillow,
            claimed_size,
        )
        lines.append(f"| {name} | {ours:.0f} | {together:.0f} | {pillow:.0f} | {claimed:.1f} |")
    return lines


def by_pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
    pixels = np.asarray(image)
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def requests(rng: np.random.Generator) -> list[str]:
    """Lines for nested pixels and rows of tables."""
    gray = rng.integers(0, 256, (64, 28, 28))
    gray[rng.random(gray.shape) < 0.5] = 0
    colour = rng.integers(0, 256, (1, 32, 32, 3))
    numbers = [Column(name=f"feature {index}", low=-3, high=3, typical=0) for index in range(30)]
    texts = [
        CategoryColumn(
            name=f"kind {index}", categories=tuple(f"value {k}" for k in range(12)),
            typical="value 0",
        )
        for index in range(8)
    ]  # fmt: skip
    mixed = TableInput(columns=(*numbers[:6], *texts))
    rows = [
        {
            **{column.name: float(rng.normal()) for column in numbers},
            **{column.name: f"value {rng.integers(12)}" for column in texts},
        }
        for _ in range(64)
    ]

    def only(columns: Sequence[Any]) -> list[dict[str, Any]]:
        return [{column.name: row[column.name] for column in columns} for row in rows]

    cases: list[tuple[str, Any, list[Any]]] = [
        ("28 x 28", ImageInput(channels=1, height=28, width=28), gray.tolist()),
        ("32 x 32 RGB", ImageInput(channels=3, height=32, width=32), colour.tolist()),
        ("30 number columns", TableInput(columns=tuple(numbers)), only(numbers)),
        ("6 number and 8 category columns", mixed, only(mixed.columns)),
    ]
    unknown = [{**only(mixed.columns)[0], texts[0].name: "unknown"}]
    cases.append((f"{cases[-1][0]}, one text unknown", mixed, unknown))
    lines = []
    for name, spec, instances in cases:
        manifest: Any = SimpleNamespace(input=spec, labels=LABELS)
        decoder = RequestDecoder(manifest, max_rows=1000, max_pixels=10**7)
        for count in sorted({1, len(instances)}):
            body = msgspec.json.encode({"instances": instances[:count]})
            ours, bare = microseconds([body], decoder.decode, msgspec.json.decode)
            lines.append(f"| {name}, rows: {count} | {ours:.1f} | {bare:.1f} |")
    return lines


def answers(rng: np.random.Generator) -> list[str]:
    """Lines for one row and many, all labels and a few."""
    manifest: Any = SimpleNamespace(labels=LABELS, reference="name@0123456789ab", threshold=0.5)
    encode = response_encoder(manifest)
    lines = []
    for count in (1, 256):
        logits = rng.normal(size=(count, len(LABELS)))
        rows = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        for top_k in (None, 3):
            (took,) = microseconds([rows], lambda rows, top_k=top_k: encode(rows, top_k))
            lines.append(f"| rows: {count}{', top_k 3' if top_k else ''} | {took:.1f} |")
    return lines


def microseconds(inputs: Sequence[Any], *functions: Callable[[Any], object]) -> list[float]:
    """Of one call of each function: the least of ROUNDS for each input, then their mean.

    In turn, so that a slow moment of the machine falls on all; short ones many at a time.
    """
    least = np.full((len(functions), len(inputs)), np.inf)
    calls = []
    for function in functions:
        began = time.perf_counter()
        function(inputs[0])
        calls.append(max(1, int(5e-4 / (time.perf_counter() - began))))
    for _ in range(ROUNDS):
        for column, given in enumerate(inputs):
            for row, function in enumerate(functions):
                began = time.perf_counter()
                for _ in range(calls[row]):
                    function(given)
                took = (time.perf_counter() - began) / calls[row]
                least[row, column] = min(least[row, column], took)
    return (least.mean(axis=1) * 1e6).tolist()


if __name__ == "__main__":
    main()
