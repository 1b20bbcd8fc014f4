"""Preprocessing, as data: what the exported graph does before the network. Part of the manifest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from artifacts.inputs import Frozen


class Scale(Frozen):
    """float32(x) * factor."""

    step: Literal["scale"] = "scale"
    factor: float


class Normalize(Frozen):
    """(x - mean) / std, for each channel or column, in the precision that x has; then float32."""

    step: Literal["normalize"] = "normalize"
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_length(self) -> Normalize:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have the same length")
        return self


class Fill(Frozen):
    """NaN becomes the column's value."""

    step: Literal["fill"] = "fill"
    values: tuple[float, ...]


class Clip(Frozen):
    """Cut at -limit and +limit, so that no input, however wild, overflows the network."""

    step: Literal["clip"] = "clip"
    limit: float = Field(gt=0)


class Reorder(Frozen):
    """The channels of a picture in another order; [2, 1, 0] makes BGR of RGB."""

    step: Literal["reorder"] = "reorder"
    channels: tuple[Annotated[int, Field(ge=0, le=2)], ...] = Field(min_length=1)


class NumberEncoding(Frozen):
    """How one number becomes network input.

    NaN becomes `fill`. z = (x - center) / scale, then z / sqrt(1 + (z / limit)^2): nearly z for
    what is usual, never beyond +-limit (Holzmueller et al. 2024, arXiv 2407.04491). With edges
    e_0 < ... < e_B, B more inputs: how far x has come through each bin, 0 to 1 (piecewise-linear
    encoding, Gorishniy et al. 2022, arXiv 2203.05556). With `indicator`, one more: 1 for NaN.
    """

    kind: Literal["number"] = "number"
    fill: float
    center: float
    scale: float = Field(gt=0)
    edges: tuple[float, ...] = ()
    indicator: bool = False

    @model_validator(mode="after")
    def _edges_rise(self) -> NumberEncoding:
        if any(low >= high for low, high in itertools.pairwise(self.edges)):
            raise ValueError("edges must rise")
        if len(self.edges) == 1:
            raise ValueError("edges: expected none, or at least two")
        return self


class CategoryEncoding(Frozen):
    """One input for each of `values`, 1 where the raw value is that, otherwise 0.

    -1 stands for NaN. A raw value that training never had has no input: all are 0.
    """

    kind: Literal["category"] = "category"
    values: tuple[Annotated[int, Field(ge=-1)], ...]


class Encode(Frozen):
    """A table's raw values -> float32 network input, each as its entry in `inputs` says.

    In this order: the scaled numbers; for each of them its bins, as many as the number with the
    most has (those that it has not are 0); the indicators; the categories.
    """

    step: Literal["encode"] = "encode"
    limit: float = Field(default=3.0, gt=0)
    inputs: tuple[
        Annotated[NumberEncoding | CategoryEncoding, Field(discriminator="kind")], ...
    ] = Field(min_length=1)

    @property
    def numbers(self) -> tuple[NumberEncoding, ...]:
        """The entries of numbers."""
        return tuple(entry for entry in self.inputs if isinstance(entry, NumberEncoding))

    @property
    def bins(self) -> int:
        """How many inputs each number has for its bins."""
        return max((max(0, len(entry.edges) - 1) for entry in self.numbers), default=0)

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """How many inputs each category column has."""
        return tuple(
            len(entry.values) for entry in self.inputs if isinstance(entry, CategoryEncoding)
        )

    @property
    def width(self) -> int:
        """How many network inputs a row has."""
        indicators = sum(entry.indicator for entry in self.numbers)
        return len(self.numbers) * (1 + self.bins) + indicators + sum(self.category_sizes)


Step = Annotated[Scale | Normalize | Fill | Clip | Reorder | Encode, Field(discriminator="step")]


def network_shape(input_shape: tuple[int, ...], steps: Sequence[Step]) -> tuple[int, ...]:
    """Of one row of network input, after the preprocessing steps."""
    for step in steps:
        if isinstance(step, Encode):
            return (step.width,)
    return input_shape
