"""JSON requests -> raw input, and answers -> JSON, for one model.

The request's type is made from the manifest, so that parsing checks each row against the model's
own columns or picture size and names the place of what does not fit.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from artifacts.cells import ColumnSpec, encode_column
from artifacts.decision import decide
from artifacts.errors import DataError
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, ImageInput, TableInput
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
            try:
                instance = _row_type(spec)
            except ValueError:
                # msgspec has no field names that JSON must escape.
                instance = dict[str, Any]
            self._usual = [_usual_cells(column) for column in spec.columns]
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
                pixels = np.frombuffer(_pixel_bytes(instance, spec.channels), dtype=np.uint8)
                pixels = pixels.reshape(spec.height, spec.width, spec.channels)
                raw[index] = pixels.transpose(2, 0, 1)
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
        if isinstance(instances[0], dict):
            rows = [_cells_by_name(place, row, spec) for place, row in enumerate(instances)]
        else:
            rows = [msgspec.structs.astuple(instance) for instance in instances]
        # Only a null can be other than finite here, and the row type has it only where it is
        # answered: JSON has no NaN, and a number too large for a double is an error of parsing.
        if spec.only_numbers:
            return np.array(rows, dtype=np.float64)
        columns: list[Sequence[float | None]] = []
        bad: dict[int, str] = {}
        for column, cells, usual in zip(
            spec.columns, zip(*rows, strict=True), self._usual, strict=True
        ):
            if isinstance(column, Column):
                columns.append(cells)
                continue
            try:
                columns.append([usual[cell] for cell in cells])
            except KeyError:
                values, reasons = encode_column(column, cells)
                columns += values.T.tolist()
                for row, reason in reasons.items():
                    bad.setdefault(row, reason)
        if bad:
            row = min(bad)
            raise DataError(f"instances[{row}]: {bad[row]}")
        return np.ascontiguousarray(np.array(columns, dtype=np.float64).T)


def _pixel_bytes(rows: list[Any], channels: int) -> bytes:
    """Nested pixels as [height][width][channels]; bytes() takes a list twice as fast as numpy."""
    if channels > 1:
        rows = [list(chain.from_iterable(row)) for row in rows]
    return b"".join(map(bytes, rows))


def _usual_cells(column: ColumnSpec) -> dict[Any, float]:
    """What `encode_column` makes of the cells that a column is known to have, to look up.

    Nothing else equals a text; a number that equals a boolean means the same in its column.
    """
    cells: list[Any] = [None]
    if isinstance(column, BooleanColumn):
        cells += [True, False]
    elif isinstance(column, CategoryColumn):
        cells += column.categories
    else:
        return {}
    values, bad = encode_column(column, cells)
    return {cell: float(values[row, 0]) for row, cell in enumerate(cells) if row not in bad}


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
    fields: list[Any] = [
        (f"column_{index}", _cell_type(column), msgspec.field(name=column.name))
        for index, column in enumerate(spec.columns)
    ]
    return msgspec.defstruct("Row", fields, forbid_unknown_fields=True)


def _cell_type(column: ColumnSpec) -> Any:
    cell = _CELL_TYPES[column.type]
    return cell | None if column.missing == "fill" else cell


def _cells_by_name(place: int, row: dict[str, Any], spec: TableInput) -> tuple[Any, ...]:
    """What a row type does, for columns that it cannot name; with the same words."""
    names = [column.name for column in spec.columns]
    for name in names:
        if name not in row:
            raise DataError(f"instances[{place}]: missing field or column `{name}`")
    for name in row:
        if name not in names:
            raise DataError(f"instances[{place}]: unknown field or column `{name}`")
    cells = []
    for column in spec.columns:
        try:
            cells.append(msgspec.convert(row[column.name], _cell_type(column)))
        except msgspec.ValidationError as error:
            message = _explain(str(error)).removeprefix("the body: ")
            raise DataError(f"instances[{place}].{column.name}: {message}") from error
    return tuple(cells)


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
    by_label = _by_label(labels)

    def encode(probabilities: np.ndarray, top_k: int | None) -> bytes:
        rows: list[list[float]] = probabilities.tolist()
        shown: list[Any]
        if top_k is None:
            shown = [by_label(row) for row in rows]
        else:
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k].tolist()
            shown = [
                {labels[k]: row[k] for k in places} for row, places in zip(rows, order, strict=True)
            ]
        predictions = [
            {
                "label": labels[index],
                "index": index,
                "probability": row[index],
                "probabilities": answered,
            }
            for index, row, answered in zip(
                decide(probabilities, threshold).tolist(), rows, shown, strict=True
            )
        ]
        return msgspec.json.encode({"predictions": predictions, "model": reference})

    return encode


def _by_label(labels: Sequence[str]) -> Callable[[list[float]], Any]:
    """A function of a row of probabilities to what JSON writes as {label: probability}."""
    fields = [
        (f"label_{index}", float, msgspec.field(name=label)) for index, label in enumerate(labels)
    ]
    try:
        # Twice as fast as a dict: its keys are written out once.
        row_type: Any = msgspec.defstruct("Probabilities", fields, gc=False)
    except ValueError:
        # msgspec has no field names that JSON must escape.
        return lambda row: dict(zip(labels, row, strict=True))
    return lambda row: row_type(*row)
