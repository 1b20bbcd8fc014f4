"""JSON requests -> raw input, and answers -> JSON, for one model.

The request's type is made from the manifest, so that parsing checks each row against the model's
own columns or picture size and names the place of what does not fit.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from artifacts.cells import encode_columns
from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.inputs import Column, ImageInput, TableInput
from artifacts.manifest import Manifest
from artifacts.pixels import decode_images

_WORDING = {
    "Object contains unknown field": "unknown field or column",
    "Object missing required field": "missing field or column",
}
_PLACE = re.compile(r"^(.*?) - at `\$\.?(.*)`$", re.DOTALL)


class EncodedImage(msgspec.Struct, forbid_unknown_fields=True):
    """An image instance as base64 of a PNG, JPEG or WebP file."""

    b64: str


@dataclass(frozen=True)
class Request:
    """raw: the graph's input, [N, *input shape]; top_k: how many probabilities to answer."""

    raw: np.ndarray
    top_k: int | None


class RequestDecoder:
    """Decodes `{"instances": [...], "top_k": K}` for one model."""

    def __init__(self, manifest: Manifest, *, max_rows: int, max_pixels: int) -> None:
        """max_rows, max_pixels: of one request; pixels those of all its encoded pictures."""
        self._spec = manifest.input
        self._max_pixels = max_pixels
        spec = manifest.input
        if isinstance(spec, ImageInput):
            instance: Any = _image_type(spec) | EncodedImage
        else:
            instance = _row_type(spec)
        top_k = Annotated[int, msgspec.Meta(ge=1, le=len(manifest.labels))]
        envelope = msgspec.defstruct(
            "Request",
            [
                (
                    "instances",
                    Annotated[list[instance], msgspec.Meta(min_length=1, max_length=max_rows)],
                ),
                ("top_k", top_k | None, None),
            ],
            forbid_unknown_fields=True,
        )
        self._decoder = msgspec.json.Decoder(envelope)

    def decode(self, body: bytes) -> Request:
        """Raise DataError naming the field or row that does not fit."""
        try:
            envelope: Any = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise DataError(_explain(str(error))) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"the body is not JSON: {error}") from error
        if isinstance(self._spec, ImageInput):
            raw = self._images(envelope.instances, self._spec)
        else:
            raw = self._rows(envelope.instances, self._spec)
        return Request(raw, envelope.top_k)

    def _images(self, instances: list[Any], spec: ImageInput) -> np.ndarray:
        raw = np.empty((len(instances), *spec.shape), dtype=np.uint8)
        encoded: dict[int, bytes] = {}
        for index, instance in enumerate(instances):
            if isinstance(instance, EncodedImage):
                try:
                    encoded[index] = base64.b64decode(instance.b64, validate=True)
                except (binascii.Error, ValueError) as error:
                    raise DataError(f"instances[{index}].b64: not base64: {error}") from error
            else:
                pixels = np.array(instance, dtype=np.uint8)
                raw[index] = pixels if spec.channels == 1 else pixels.transpose(2, 0, 1)
        if encoded:
            places = list(encoded)
            raw[places], bad = decode_images(
                list(encoded.values()), spec,
                max_pixels=self._max_pixels, max_total_pixels=self._max_pixels,
            )  # fmt: skip
            for position, reason in bad.items():
                raise DataError(f"instances[{places[position]}].b64: {reason}")
        return raw

    def _rows(self, instances: list[Any], spec: TableInput) -> np.ndarray:
        rows = [msgspec.structs.astuple(instance) for instance in instances]
        if spec.only_numbers:
            table = np.array(rows, dtype=np.float64)
            if np.isfinite(table).all():
                return table
        cells: list[Any] = list(zip(*rows, strict=True))
        for index, column in enumerate(spec.columns):
            if isinstance(column, Column):
                cells[index] = np.array(cells[index], dtype=np.float64)
        raw, bad = encode_columns(cells, spec)
        if bad:
            row = min(bad)
            raise DataError(f"instances[{row}]: {bad[row]}")
        return raw


def _image_type(spec: ImageInput) -> Any:
    """Nested pixels: [height][width], or [height][width][3] for RGB; whole numbers 0 to 255."""
    nested: Any = Annotated[int, msgspec.Meta(ge=0, le=255)]
    sizes = [spec.width, spec.height] if spec.channels == 1 else [3, spec.width, spec.height]
    for size in sizes:
        nested = Annotated[list[nested], msgspec.Meta(min_length=size, max_length=size)]
    return nested


# What a JSON cell of a column may be; `artifacts.cells` reads the rest of it.
_CELL_TYPES: dict[str, Any] = {
    "number": float,
    "boolean": bool | int | float | str,
    "category": str | bool | int | float,
    "date": str,
}


def _row_type(spec: TableInput) -> Any:
    """An object with exactly the model's columns; null only where a missing value is answered."""
    fields: list[Any] = []
    for index, column in enumerate(spec.columns):
        cell = _CELL_TYPES[column.type]
        if column.missing == "fill":
            cell = cell | None
        fields.append((f"column_{index}", cell, msgspec.field(name=column.name)))
    return msgspec.defstruct("Row", fields, forbid_unknown_fields=True)


def _explain(message: str) -> str:
    """msgspec's message with the place first: "instances[3].age: expected `float`, got `str`"."""
    match = _PLACE.match(message)
    text, place = (match[1], match[2]) if match else (message, "")
    for theirs, ours in _WORDING.items():
        text = text.replace(theirs, ours)
    return f"{place or 'the body'}: {text[0].lower()}{text[1:]}"


def response_encoder(manifest: Manifest) -> Callable[[np.ndarray, int | None], bytes]:
    """A function of probabilities, float32 [N, K], and top_k, to the response's bytes.

    Each number is the float32 written out as a double, so that parsing it gives the same bits.
    The label, with its index and probability, is decided at the manifest's threshold; top_k orders
    by probability alone, so that at another threshold than 0.5 the label need not come first, and
    with top_k = 1 need not be listed.
    """
    labels, reference, threshold = manifest.labels, manifest.reference, manifest.threshold

    def encode(probabilities: np.ndarray, top_k: int | None) -> bytes:
        predictions = []
        for index, row in zip(
            decide(probabilities, threshold).tolist(), probabilities.tolist(), strict=True
        ):
            shown = range(len(labels))
            if top_k is not None:
                shown = sorted(shown, key=lambda k, row=row: -row[k])[:top_k]  # type: ignore[assignment,misc]
            predictions.append(
                {
                    "label": labels[index],
                    "index": index,
                    "probability": row[index],
                    "probabilities": {labels[k]: row[k] for k in shown},
                }
            )
        return msgspec.json.encode({"predictions": predictions, "model": reference})

    return encode
