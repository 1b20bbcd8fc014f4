"""Whether a study could change a recipe as its space says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from artifacts.errors import DataError
from training.recipe import Recipe, content_with, problems_of
from training.tuning.conditions import ancestors, contexts_of
from training.tuning.config import Choices, shown
from training.tuning.dimensions import (
    annotations_of,
    described,
    extremes,
    number_type,
    parts_of,
    takes,
)

_ROWS = "it changes which rows are measured, or where they come from"
_READING = "it is how rows are read, not what is learnt of them"
_MACHINE = "it is where a network is computed, not what"
# What a study must not change, and why; a section stands for all its keys.
_REFUSED = {
    "name": "it is what the bundle is called",
    "summary": "it is the recipe's description",
    "tune": "it is how the study itself is done",
    "export": "it is what a bundle holds, not what is learnt",
    "train.seed": "the best of several seeds is luck; tune.seeds takes the mean over several",
    "train.device": _MACHINE,
    "train.threads": _MACHINE,
    "data.source": _ROWS,
    "data.path": _ROWS,
    "data.target": _ROWS,
    "data.test_path": _ROWS,
    "data.val_fraction": _ROWS,
    "data.test_fraction": _ROWS,
    "data.limit": _ROWS,
    "data.seed": _ROWS,
    "data.skip_bad": _ROWS,
    "data.memory_mb": _READING,
    "data.workers": _READING,
}


def check_space(recipe: Recipe) -> None:
    """Raise DataError, a line for each key, where a study could not change the recipe so.

    The ends of each range and each choice must be values that the recipe takes, where the key's
    conditions hold. Values of several keys that do not go together are left to `recipe_of`.
    """
    space = recipe.tune.space
    for find in (_problem_of_key, _problem_of_condition, _problem_of_values):
        problems = [text for key in space if (text := find(recipe, key)) is not None]
        if problems:
            raise DataError("; ".join(dict.fromkeys(problems)))


def _problem_of_key(recipe: Recipe, key: str) -> str | None:
    """What is wrong with the key itself, or with a range as a value of it."""
    parts, dimension = parts_of(key), recipe.tune.space[key]
    where = f"tune.space.{key}"
    refused = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    reason = next((_REFUSED[name] for name in refused if name in _REFUSED), None)
    if reason is not None:
        return f"{where}: a study must not change it: {reason}"
    if len(parts) == 1 and parts[0] in Recipe.model_fields:
        return f'{where} is a section; expected a key in it, in quotes, such as "train.lr"'
    for other in recipe.tune.space:
        if other != key and parts[: len(parts_of(other))] == parts_of(other):
            return f"{where}: found {other} in the space too, which sets it; expected one of them"
    if isinstance(dimension, Choices) or not annotations_of(key):
        # An unknown key is found with its values, by what names the keys that there are.
        return None
    numbers = number_type(key)
    if numbers is None:
        return f"{where}: a range is of numbers, which it does not take; expected choices"
    whole, is_list = numbers
    if is_list and dimension.length is None:
        return f"{where}: it is a list; expected length = [SMALLEST, LARGEST], found none"
    if dimension.length is not None and not is_list:
        return f"{where}: it is one number; expected no length, found {list(dimension.length)}"
    for name in ("low", "high", "step"):
        number = getattr(dimension, name)
        if whole and number is not None and number != int(number):
            return f"{where}: expected {name} to be a whole number, found {number:.12g}"
    return None


def _problem_of_condition(recipe: Recipe, key: str) -> str | None:
    """What is wrong with when."""
    space = recipe.tune.space
    for parent, allowed in space[key].when.items():
        where = f"tune.space.{key}: when"
        if parent not in space:
            return f"{where} names {parent}, which is not in the space"
        for value in allowed:
            if not takes(parent, space[parent], value):
                line = described(parent, space[parent])
                return f"{where}: {parent} never is {shown(value)}; found {line}"
    if key in ancestors(space, key):
        return f"tune.space.{key}: when leads back to the key itself"
    return None


def _problem_of_values(recipe: Recipe, key: str) -> str | None:
    """The first end or choice that the recipe does not take, and why."""
    space = recipe.tune.space
    contexts = list(contexts_of(space, key))
    if not contexts:
        return f"tune.space.{key}: its conditions never hold together"
    section = key.partition(".")[0] + "."
    alone = not any(other != key and other.startswith(section) for other in space)
    name = ".".join(parts_of(key))
    for context, value in itertools.product(contexts, extremes(key, space[key])):
        try:
            changed = content_with(recipe, {**context, key: value}, "tune.space.")
        except DataError as error:
            return str(error)
        for found, line in problems_of(changed).items():
            if line.startswith("unknown key"):
                return f"tune.space: {line}{_where(context)}"
            if found == name or found.startswith(f"{name}."):
                return f"tune.space.{line}{_where(context)}"
            # With more keys of its section in the space, some of their values may go with it.
            if alone:
                return f"tune.space.{key}: {shown(value)} does not go with the recipe: {line}"
    return None


def _where(context: Mapping[str, Any]) -> str:
    if not context:
        return ""
    return f" (where {', '.join(f'{key} is {shown(value)}' for key, value in context.items())})"
