"""`evidence.json`: what a release saw of the model beyond its metrics, for people to look at.

Curves, mistakes and what the answers depend on. Nothing that is served depends on it.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field, ValidationError, model_validator

from artifacts.inputs import Frozen, first_problem

if TYPE_CHECKING:
    from artifacts.manifest import Manifest

MAX_EVIDENCE_BYTES = 8 * 2**20
MOST_MISTAKES = 12
LONGEST_SIDE = 128
_MOST_PICTURE_BYTES = 2**18
# The signature; with the first chunk's length, type and the two sides.
_PNG, _HEADER = b"\x89PNG\r\n\x1a\n", 24

Share = Annotated[float, Field(ge=0, le=1)]
Point: TypeAlias = tuple[Share, Share]
# JSON's values, as `artifacts.cells.decode_row` gives them.
CellValue: TypeAlias = bool | float | str | None


class Curves(Frozen):
    """How the second of two labels is told from the first, on the test part, at every threshold.

    roc: (false positive rate, true positive rate), from (0, 0) to (1, 1). precision_recall:
    (recall, precision), recall falling. Of very many points those that keep the curve's shape.
    """

    roc: tuple[Point, ...] = Field(min_length=2, max_length=1000)
    precision_recall: tuple[Point, ...] = Field(min_length=1, max_length=1000)


class Mistake(Frozen):
    """A row of the test part that was answered wrongly.

    row: its number in that part. label, answer: indices of the true and the answered label.
    probability, of_label: what was given to the answer and to the true label. picture: a PNG in
    base64, of the model's size or smaller. cells: as they were read, of the columns that matter
    most, those first.
    """

    row: int = Field(ge=0)
    label: int = Field(ge=0)
    answer: int = Field(ge=0)
    probability: Share
    of_label: Share
    picture: str | None = None
    cells: dict[str, CellValue] | None = None

    @model_validator(mode="after")
    def _picture_is_a_png(self) -> Mistake:
        if self.picture is None:
            return self
        if len(self.picture) > _MOST_PICTURE_BYTES:
            raise ValueError(f"picture: expected at most {_MOST_PICTURE_BYTES} characters")
        try:
            data = base64.b64decode(self.picture, validate=True)
        except binascii.Error as error:
            raise ValueError(f"picture: not base64: {error}") from error
        if not data.startswith(_PNG) or len(data) < _HEADER:
            raise ValueError("picture: expected a PNG")
        # Of what a viewer would decode, whatever the file's size.
        sides = struct.unpack_from(">II", data, len(_PNG) + 8)
        if max(sides) > LONGEST_SIDE:
            raise ValueError(
                f"picture: expected at most {LONGEST_SIDE} pixels a side, found {sides}"
            )
        return self


class Spread(Frozen):
    """The mean over several shuffles, the smallest and the largest."""

    mean: float
    low: float
    high: float


class ColumnImportance(Frozen):
    """What is lost when one column's cells are shuffled among rows of the test part.

    accuracy: the drop of accuracy. log_loss: the rise of log loss, in nats. rows: how many were
    answered each time; shuffles: how many times.
    """

    column: str
    accuracy: Spread
    log_loss: Spread
    rows: int = Field(ge=1)
    shuffles: int = Field(ge=1)


class Evidence(Frozen):
    """What a release keeps for its report.

    curves: with two labels, where the test part has rows of both. mistakes: the most confident
    first; None where no real row may leave the machine. importance: a table's columns, what
    matters most first (Breiman 2001, Fisher et al. 2019).
    """

    curves: Curves | None = None
    mistakes: tuple[Mistake, ...] | None = Field(default=None, max_length=MOST_MISTAKES)
    importance: tuple[ColumnImportance, ...] = ()

    def encode(self) -> bytes:
        """As the bytes of `evidence.json`."""
        return (self.model_dump_json() + "\n").encode()


def decode_evidence(payload: bytes, manifest: Manifest) -> Evidence:
    """`evidence.json`, checked against the manifest of its bundle. Raises ValueError."""
    try:
        evidence = Evidence.model_validate_json(payload)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    classes = len(manifest.labels)
    columns = (
        {column.name for column in manifest.input.columns}
        if manifest.input.kind == "table"
        else set()
    )
    if evidence.curves is not None and classes != 2:
        raise ValueError(f"curves: they are for two labels, found {classes}")
    for number, mistake in enumerate(evidence.mistakes or ()):
        if max(mistake.label, mistake.answer) >= classes:
            raise ValueError(f"mistakes.{number}: expected labels below {classes}")
        if (mistake.picture is not None) != (manifest.input.kind == "image"):
            raise ValueError(f"mistakes.{number}: not a row of {manifest.input.kind} input")
        _check_columns(f"mistakes.{number}.cells", mistake.cells or {}, columns)
    _check_columns("importance", [entry.column for entry in evidence.importance], columns)
    return evidence


def _check_columns(where: str, found: Iterable[str], known: set[str]) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"{where}: no column {unknown[0]!r} in the manifest")
