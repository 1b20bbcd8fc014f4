"""What a study changes of a recipe: checked against it, suggested by a trial, set in it.

values = suggest(trial, recipe.tune.space)     # {"train.lr": 0.01, "model.hidden": [64, 32]}
recipe_of(recipe, values)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from artifacts.errors import DataError
from training.recipe import Recipe, content_with, validated
from training.tuning.conditions import active, ordered_keys
from training.tuning.config import Choices, Range
from training.tuning.dimensions import (
    Space,
    bounds_of,
    described,
    is_whole,
    lies_in,
    numbers_of,
    parts_of,
    stored,
)
from training.tuning.space_checks import check_space as check_space

# More values of one key, or combinations of all, are no grid that a study could go through.
_LARGEST_GRID = 100_000


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """A trial's value of each key: {"train.lr": 0.01, "model.hidden": [64, 32]}.

    trial: Optuna's, or anything with suggest_int, suggest_float and suggest_categorical.
    Keys come in the space's order, but after what they depend on; those whose condition does not
    hold are left out.
    """
    values: dict[str, Any] = {}
    for key in ordered_keys(space):
        dimension = space[key]
        if not active(dimension, values):
            continue
        if isinstance(dimension, Choices):
            choices = stored(dimension)
            values[key] = choices[trial.suggest_categorical(key, list(choices))]
        elif dimension.length is None:
            values[key] = _suggest_number(trial, key, key, dimension)
        else:
            length = trial.suggest_int(_length_name(key), *dimension.length)
            values[key] = [
                _suggest_number(trial, _element_name(key, place), key, dimension)
                for place in range(length)
            ]
    return values


def recipe_of(base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """`base` with these keys set; its [tune] section stays.

    Raises DataError naming the key, or the keys that do not go together.
    """
    label = f"recipe {base.name}"
    content = content_with(base, values, f"{label}: ")
    return validated(content, label).model_copy(update={"tune": base.tune})


def default_params(base: Recipe) -> dict[str, Any]:
    """The recipe as it is, as the parameters of a trial, by Optuna's names.

    Keys whose value lies outside the space, or whose condition does not hold, are left out.
    """
    space = base.tune.space
    present: dict[str, Any] = {}
    params: dict[str, Any] = {}
    content = base.model_dump(mode="json")
    for key in ordered_keys(space):
        dimension = space[key]
        if not active(dimension, present):
            continue
        value = present[key] = _present(content, key)
        if isinstance(dimension, Choices):
            for name, choice in stored(dimension).items():
                if _is_present(base, key, choice, value):
                    present[key], params[key] = choice, name
        elif dimension.length is None:
            if lies_in(key, dimension, value):
                params[key] = value
        elif _is_list_of(key, dimension, value):
            params[_length_name(key)] = len(value)
            params |= {_element_name(key, place): each for place, each in enumerate(value)}
    return params


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's distribution of each parameter that a trial may have, by Optuna's name."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for key in ordered_keys(space):
        dimension = space[key]
        if isinstance(dimension, Choices):
            found[key] = CategoricalDistribution(list(stored(dimension)))
            continue
        kind = IntDistribution if is_whole(key) else FloatDistribution
        number = kind(**bounds_of(key, dimension))
        if dimension.length is None:
            found[key] = number
            continue
        found[_length_name(key)] = IntDistribution(*dimension.length)
        names = (_element_name(key, place) for place in range(dimension.length[1]))
        found |= dict.fromkeys(names, number)
    return found


def grid(base: Recipe, space: Space) -> dict[str, list[Any]]:
    """Every value of each key, as Optuna's grid sampler takes them.

    The product of their numbers is the number of combinations.
    Raises DataError naming each key that cannot be enumerated, or the number of combinations
    where there are too many to go through.
    """
    problems = [f"{key}: {why}" for key in space if (why := _not_enumerable(key, space[key]))]
    if problems:
        raise DataError(f"recipe {base.name}: a grid of tune.space: {'; '.join(problems)}")
    values: dict[str, list[Any]] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choices):
            values[key] = list(stored(dimension))
        else:
            values[key] = numbers_of(key, dimension)
    combinations = math.prod(len(of_key) for of_key in values.values())
    if combinations > _LARGEST_GRID:
        raise DataError(
            f"recipe {base.name}: a grid of tune.space: expected at most {_LARGEST_GRID:,} "
            f"combinations, found {combinations:,}"
        )
    return values


def describe_space(space: Space) -> list[str]:
    """A line for each key: "train.lr: 1e-05 to 0.1 (log)"."""
    return [described(key, dimension) for key, dimension in space.items()]


def _not_enumerable(key: str, dimension: Range | Choices) -> str | None:
    """Why a grid cannot have all values of the key."""
    if dimension.when:
        return "a grid has no conditions, found when"
    if isinstance(dimension, Choices):
        return None
    if dimension.length is not None:
        return "a grid has no lists of a length that changes; expected choices"
    if dimension.step is None and not is_whole(key):
        return "expected a step or choices, found a range of any number"
    bounds = bounds_of(key, dimension)
    count = round((bounds["high"] - bounds["low"]) / bounds["step"]) + 1
    if count > _LARGEST_GRID:
        return f"expected at most {_LARGEST_GRID:,} values, found {count:,}"
    return None


def _suggest_number(trial: Any, name: str, key: str, dimension: Range) -> Any:
    suggest_number = trial.suggest_int if is_whole(key) else trial.suggest_float
    return suggest_number(name, **bounds_of(key, dimension))


def _is_list_of(key: str, dimension: Range, value: Any) -> bool:
    assert dimension.length is not None
    shortest, longest = dimension.length
    return (
        isinstance(value, list)
        and shortest <= len(value) <= longest
        and all(lies_in(key, dimension, element) for element in value)
    )


def _length_name(key: str) -> str:
    return f"{key}.length"


def _element_name(key: str, place: int) -> str:
    return f"{key}[{place}]"


def _is_present(base: Recipe, key: str, choice: Any, value: Any) -> bool:
    """Whether the recipe has this choice, which may leave defaults out, as its value."""
    try:
        chosen = recipe_of(base, {key: choice})
    except DataError:
        return False
    return bool(_present(chosen.model_dump(mode="json"), key) == value)


def _present(content: Any, key: str) -> Any:
    """A key's value in a recipe's content, None where there is none."""
    for part in parts_of(key):
        content = content.get(part) if isinstance(content, dict) else None
    return content
