"""What a model takes, as data: pictures of one size, or a table's columns. Part of the manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Frozen(BaseModel):
    """Immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a file's content, by where it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


class ImageInput(Frozen):
    """Pictures. Raw input: uint8, [N, channels, height, width], RGB or grayscale, 0 to 255.

    fit: what becomes of an encoded picture of another size. "crop" resizes the shorter side and
    cuts the middle out; "stretch" resizes both sides.
    resize: for "crop", the length that the shorter side gets; without it, just what is cut out.
    """

    kind: Literal["image"] = "image"
    channels: Literal[1, 3]
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fit: Literal["crop", "stretch"] = "crop"
    resize: int | None = Field(default=None, ge=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _resize_covers_the_cut(self) -> ImageInput:
        if self.resize is not None and self.fit != "crop":
            raise ValueError('resize is for fit "crop"')
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ValueError(f"resize {self.resize} is smaller than what is cut out")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of raw input."""
        return (self.channels, self.height, self.width)


# missing: "reject" makes a missing cell an error of its row; "fill" lets the graph answer.
MissingPolicy = Literal["reject", "fill"]


class Column(Frozen):
    """A numeric column of a table: one raw value.

    low, high, typical: the training part's range and median, for forms, checks and examples.
    """

    name: str = Field(min_length=1)
    type: Literal["number"] = "number"
    missing: MissingPolicy = "reject"
    low: float
    high: float
    typical: float

    @property
    def width(self) -> int:
        """How many values of a row's raw input are this column's."""
        return 1


class BooleanColumn(Frozen):
    """A column of true and false: one raw value, 1 or 0."""

    name: str = Field(min_length=1)
    type: Literal["boolean"] = "boolean"
    missing: MissingPolicy = "reject"
    typical: bool

    @property
    def width(self) -> int:
        """How many values of a row's raw input are this column's."""
        return 1


class CategoryColumn(Frozen):
    """A column of a few different texts: one raw value, the index in `categories`.

    A text that is not in `categories`, for which training had too few rows or none, is
    len(categories): its answer is that of the rare categories of training, if there were any.
    """

    name: str = Field(min_length=1)
    type: Literal["category"] = "category"
    missing: MissingPolicy = "reject"
    categories: tuple[str, ...] = Field(min_length=1)
    typical: str

    @model_validator(mode="after")
    def _categories_are_unique(self) -> CategoryColumn:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("categories must be unique")
        return self

    @property
    def width(self) -> int:
        """How many values of a row's raw input are this column's."""
        return 1


DatePart = Literal["timestamp", "year", "month", "day", "weekday", "hour"]


class DateColumn(Frozen):
    """A column of dates or times (ISO 8601; without a zone, UTC): one raw value for each part.

    timestamp: seconds since 1970. weekday: Monday is 0. low, high, typical: as in `Column`.
    """

    name: str = Field(min_length=1)
    type: Literal["date"] = "date"
    missing: MissingPolicy = "reject"
    parts: tuple[DatePart, ...] = Field(min_length=1)
    low: str
    high: str
    typical: str

    @property
    def width(self) -> int:
        """How many values of a row's raw input are this column's."""
        return len(self.parts)


AnyColumn = Annotated[
    Column | BooleanColumn | CategoryColumn | DateColumn, Field(discriminator="type")
]


class TableInput(Frozen):
    """Rows of cells. Raw input: float64, [N, the columns' widths], NaN where a cell is missing."""

    kind: Literal["table"] = "table"
    columns: tuple[AnyColumn, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> TableInput:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("column names must be unique")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of raw input."""
        return (sum(column.width for column in self.columns),)

    @property
    def only_numbers(self) -> bool:
        """Whether raw input and cells are the same numbers."""
        return all(column.type == "number" for column in self.columns)


InputSpec = Annotated[ImageInput | TableInput, Field(discriminator="kind")]


def input_name(spec: ImageInput | TableInput) -> str:
    """The name of the graph's input for this kind of data."""
    return "images" if spec.kind == "image" else "cells"
