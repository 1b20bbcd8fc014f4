"""The [tune] section of a recipe: what a study looks for, and which keys it may change."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from artifacts.inputs import Frozen

# Strict: true is no number, nor is "1".
_Number = Annotated[float, Field(strict=True)]
_Count = Annotated[int, Field(strict=True, ge=1, le=256)]


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


# Keys of the space, each with the values of which it must have one.
When = dict[str, Annotated[tuple[Any, ...], Field(min_length=1), BeforeValidator(_as_tuple)]]


class Range(Frozen):
    """Numbers from low to high, both included; whole ones where the recipe's key takes these.

    low, high: the smallest and the largest. step: only low, low + step, low + 2 step ...
    log: evenly by their logarithm.
    length: the key is a list of so many of them, from the first to the second number.
    when: the key is set only where all of these have one of these values; the recipe's own
    value stays otherwise.
    """

    low: _Number
    high: _Number
    step: Annotated[float, Field(strict=True, gt=0)] | None = None
    log: bool = False
    length: tuple[_Count, _Count] | None = None
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something_lies_in_it(self) -> Range:
        low, high = f"{self.low:g}", f"{self.high:g}"
        if self.low > self.high:
            raise ValueError(f"expected low at most high, found low = {low} and high = {high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low above 0, found {low}")
        if self.log and self.step is not None:
            raise ValueError("log = true and step exclude each other, found both")
        # Differences of decimal fractions are not exact, and 0.1 to 0.3 by 0.2 is meant so.
        if self.step is not None and self.step > (self.high - self.low) * (1 + 1e-9):
            raise ValueError(
                f"expected a step no larger than from {low} to {high}, found {self.step:g}"
            )
        if self.length is not None and self.length[0] > self.length[1]:
            raise ValueError(
                f"length: expected the smallest and the largest number, found {list(self.length)}"
            )
        return self


class Choices(Frozen):
    """One of these values; a bare list in a recipe is this too.

    choices: the values. when: as in a range.
    """

    choices: tuple[Any, ...]
    when: When = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_once(self) -> Choices:
        if not self.choices:
            raise ValueError("expected at least one choice, found none")
        for place, choice in enumerate(self.choices):
            if choice in self.choices[:place]:
                raise ValueError(f"expected each choice once, found {shown(choice)} twice")
        return self


def shown(choice: Any) -> str:
    """A choice for people: text as it is, anything else as JSON."""
    return choice if isinstance(choice, str) else json.dumps(choice, default=str)


def _dimension(value: Any) -> Any:
    """A range or choices, by what the table holds: an error is then of the one that is meant."""
    if isinstance(value, Range | Choices):
        return value
    if isinstance(value, list | tuple):
        return Choices(choices=tuple(value))
    if not isinstance(value, dict):
        raise ValueError(
            f"expected a list of choices, or a table with low and high, found {value!r}"
        )
    kind = Choices if "choices" in value else Range
    unknown = [key for key in value if key not in kind.model_fields]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]}; allowed: {', '.join(kind.model_fields)}")
    return kind.model_validate(value)


def _keys_in_quotes(value: Any) -> Any:
    """Raise where a key without quotes has become tables in tables."""
    if isinstance(value, dict):
        for key, content in value.items():
            if "." in key or not isinstance(content, dict):
                continue
            if not {"low", "high", "choices"} & content.keys():
                inner = next(iter(content), "KEY")
                raise ValueError(
                    f'expected keys in quotes, such as "{key}.{inner}", found the table {key}'
                )
    return value


Dimension = Annotated[Range | Choices, BeforeValidator(_dimension)]


class TuneConfig(Frozen):
    """[tune]: what `parityline tune` looks for; nothing of it decides what a run makes.

    objective: the figure of the validation part that a study makes better: "accuracy" or "auc"
    higher, "log_loss" lower.
    folds: above 1 the mean over so many folds of the training and the validation part together.
    seeds: above 1 the mean over so many seeds.
    space: what may change, by the recipe's keys: a `Range`, or `Choices`.
    """

    objective: Literal["accuracy", "log_loss", "auc"] = "accuracy"
    folds: int = Field(default=1, ge=1, le=100)
    seeds: int = Field(default=1, ge=1, le=100)
    space: Annotated[dict[str, Dimension], BeforeValidator(_keys_in_quotes)] = Field(
        default_factory=dict
    )
