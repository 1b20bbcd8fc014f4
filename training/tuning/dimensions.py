"""One dimension of a space: which numbers or choices a key of a recipe takes in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from training.recipe import Recipe, key_parts
from training.tuning.config import Choices, Range, shown

Space = Mapping[str, Range | Choices]


def parts_of(key: str) -> list[str]:
    """The parts of a recipe's key; what is none is one part, which no recipe has."""
    return key_parts(key) or [key]


def takes(key: str, dimension: Range | Choices, value: Any) -> bool:
    """Whether a trial may have just this value; of a range without steps none is likely."""
    if isinstance(dimension, Choices):
        return value in dimension.choices
    return (
        dimension.length is None
        and (dimension.step is not None or is_whole(key))
        and lies_in(key, dimension, value)
    )


def lies_in(key: str, dimension: Range, value: Any) -> bool:
    """Whether a value is a number of the range, on its steps too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    bounds = bounds_of(key, dimension)
    if not bounds["low"] <= value <= bounds["high"]:
        return False
    if bounds["step"] is None:
        return True
    steps: float = (value - bounds["low"]) / bounds["step"]
    return abs(steps - round(steps)) < 1e-8


def bounds_of(key: str, dimension: Range) -> dict[str, Any]:
    """low, high, step and log as Optuna takes them: high is the last step, or Optuna warns."""
    whole = is_whole(key)
    as_number = int if whole else float
    low, high = dimension.low, dimension.high
    step: float | None = 1 if whole else None
    if dimension.step is not None:
        step = as_number(dimension.step)
        exact = [Decimal(str(number)) for number in (low, high, dimension.step)]
        high = float(exact[0] + (exact[1] - exact[0]) // exact[2] * exact[2])
    return {"low": as_number(low), "high": as_number(high), "step": step, "log": dimension.log}


def numbers_of(key: str, dimension: Range) -> list[int | float]:
    """All numbers of a range of whole ones or with a step."""
    bounds = bounds_of(key, dimension)
    low, high, step = (Decimal(str(bounds[name])) for name in ("low", "high", "step"))
    as_number = type(bounds["low"])
    return [as_number(low + place * step) for place in range(int((high - low) / step) + 1)]


def extremes(key: str, dimension: Range | Choices) -> list[Any]:
    """The values to check: each choice, or the ends of a range, or of lists of them."""
    if isinstance(dimension, Choices):
        return list(dimension.choices)
    as_number = int if is_whole(key) else float
    ends = [as_number(dimension.low), as_number(dimension.high)]
    if dimension.length is None:
        return ends
    return [[end] * length for end, length in zip(ends, dimension.length, strict=True)]


def stored(dimension: Choices) -> dict[Any, Any]:
    """Each choice by what Optuna stores of it: itself, or the JSON of a list or a table."""
    return {
        json.dumps(choice) if isinstance(choice, list | tuple | dict) else choice: choice
        for choice in dimension.choices
    }


def described(key: str, dimension: Range | Choices) -> str:
    """One line: "train.lr: 1e-05 to 0.1 (log)"."""
    if isinstance(dimension, Choices):
        text = ", ".join(shown(choice) for choice in dimension.choices)
    else:
        text = f"{dimension.low:.12g} to {dimension.high:.12g}"
        if dimension.step is not None:
            text += f" by {dimension.step:.12g}"
        if dimension.log:
            text += " (log)"
        if dimension.length is not None:
            text = f"{dimension.length[0]} to {dimension.length[1]} of {text}"
    conditions = (
        f"{parent} is {' or '.join(shown(value) for value in allowed)}"
        for parent, allowed in dimension.when.items()
    )
    when = " and ".join(conditions)
    return f"{key}: {text}{', when ' + when if when else ''}"


def is_whole(key: str) -> bool:
    """Whether a range of this key is of whole numbers."""
    numbers = number_type(key)
    return numbers is not None and numbers[0]


@functools.cache
def number_type(key: str) -> tuple[bool, bool] | None:
    """Whether a key of a recipe takes whole numbers, and whether a list of them; None: neither."""
    for annotation in annotations_of(key):
        is_list = get_origin(annotation) is tuple
        kinds = set(_alternatives(get_args(annotation)[0])) if is_list else {annotation}
        for kind in (int, float):
            if kind in kinds:
                return kind is int, is_list
    return None


def annotations_of(key: str) -> list[Any]:
    """The types that a recipe's key may be of; [] of a key that there is not."""
    levels: list[Any] = [Recipe]
    for part in parts_of(key):
        deeper: list[Any] = []
        for level in levels:
            if isinstance(level, type) and issubclass(level, BaseModel):
                if part in level.model_fields:
                    deeper += _alternatives(level.model_fields[part].annotation)
            elif get_origin(level) is dict:
                deeper += _alternatives(get_args(level)[1])
        levels = deeper
    return levels


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, each without what else an annotation says of it."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for of in get_args(annotation) for kind in _alternatives(of)]
    return [annotation]
