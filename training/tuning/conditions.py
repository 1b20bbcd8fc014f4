"""Which keys of a space depend on which, and when a trial has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from training.tuning.config import Choices, Range
from training.tuning.dimensions import Space, extremes


def ordered_keys(space: Space) -> list[str]:
    """The keys in their order, but each after those that it depends on."""
    ordered, waiting = [], list(space)
    while waiting:
        ready = (key for key in waiting if not ancestors(space, key) & set(waiting))
        ordered.append(next(ready, waiting[0]))
        waiting.remove(ordered[-1])
    return ordered


def active(dimension: Range | Choices, values: Mapping[str, Any]) -> bool:
    """Whether its conditions hold, by the values of the keys before it that are set."""
    return all(
        parent in values and values[parent] in allowed for parent, allowed in dimension.when.items()
    )


def ancestors(space: Space, key: str) -> set[str]:
    """All keys that the key depends on, itself where they go in a circle."""
    found: set[str] = set()
    waiting = [key]
    while waiting:
        for parent in space[waiting.pop()].when:
            if parent in space and parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def contexts_of(space: Space, key: str) -> Iterator[dict[str, Any]]:
    """The ways in which the key's conditions hold: a value for each key that it depends on.

    Each key of a network depends on the kind too, where that is in the space.
    """
    ways = [
        [{**context, parent: value} for context in contexts_of(space, parent) for value in allowed]
        for parent, allowed in space[key].when.items()
    ]
    kind = space.get("model.kind")
    related = ancestors(space, key) | (ancestors(space, "model.kind") if kind else set())
    of_network = key.startswith("model.") and key != "model.kind"
    if kind and of_network and not related & {key, "model.kind"}:
        ways.append([{"model.kind": value} for value in extremes("model.kind", kind)])
        if kind.when:
            ways[-1].append({})
    for combination in itertools.product(*ways):
        merged: dict[str, Any] = {}
        for way in combination:
            if any(merged.get(name, value) != value for name, value in way.items()):
                break
            merged |= way
        else:
            yield merged
