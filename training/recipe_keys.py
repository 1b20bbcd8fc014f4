"""The keys of a recipe and their choices: what a shell completes, what a misspelt one is like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.recipe import NETWORKS, Recipe

# What has an option of its own, or holds tables that nobody types.
_LEFT_OUT = {"name", "summary", "tune.space", "model.members"}


def offered(incomplete: str) -> list[str]:
    """What begins so: sections, then keys; of a whole key `key=` and its choices or its default."""
    key, typed, _ = incomplete.partition("=")
    known = recipe_keys()
    if typed or key in known:
        whole = [f"{key}=", *(f"{key}={value}" for value in sorted(known.get(key, ())))]
        return [text for text in whole if text.startswith(incomplete)]
    depth = key.count(".") + 1
    found: dict[str, None] = {}
    for name in known:
        if name.startswith(key):
            parts = name.split(".")
            found[f"{name}=" if len(parts) == depth else ".".join(parts[:depth]) + "."] = None
    # The only one: what comes after it too, or the shell would end the word there.
    return offered(next(iter(found))) if len(found) == 1 else list(found)


def recipe_keys() -> dict[str, set[str]]:
    """Each key of a recipe with the values that are known for it."""
    known: dict[str, set[str]] = {}
    for name, values in _keys(Recipe, ""):
        known.setdefault(name, set()).update(values)
    return known


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, set[str]]]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in _LEFT_OUT:
            continue
        if key == "model":
            yield "model.kind", {kind for kind in NETWORKS if kind != "ensemble"}
            for network in NETWORKS.values():
                yield from _keys(network, "model.")
        elif key != "model.kind":
            section = _section(field.annotation)
            if section is not None:
                yield from _keys(section, f"{key}.")
            else:
                yield key, _values(field)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, also where it may be None."""
    kinds = [annotation, *get_args(annotation)]
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _values(field: FieldInfo) -> set[str]:
    values = set(_choices(field.annotation))
    if isinstance(field.default, bool | int | float | str):
        values.add(field.default if isinstance(field.default, str) else json.dumps(field.default))
    return values


def _choices(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _choices(part)
