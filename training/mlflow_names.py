"""A recipe, epochs, metrics and a run's origin as the flat names and texts that MLflow takes."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

# MLflow's limits, and what it does not take in a name; a "/" in a key would make a folder of it.
_NAME_LENGTH, _TEXT_LENGTH = 250, 6000
# A part of a list, as a trial's parameter: model.hidden[0].
_INDEX = re.compile(r"\[(\d+)\]")
_NOT_IN_NAMES = re.compile(r"[^\w.\- :]|^\.*$")


def flat_params(recipe: dict[str, Any]) -> dict[str, str]:
    """A recipe's keys and values as texts, with names that MLflow takes: {"train.lr": "0.001"}."""
    flat: dict[str, str] = {}
    for key, value in _leaves(recipe, "."):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        flat[key[:_NAME_LENGTH]] = text[:_TEXT_LENGTH]
    return flat


def trial_params(params: Mapping[str, Any]) -> dict[str, str]:
    """A trial's parameters likewise, by recipe keys: {"model.hidden.0": "64"}."""
    return flat_params({_INDEX.sub(r".\1", key): value for key, value in params.items()})


def metric_points(values: Mapping[str, float]) -> dict[str, float]:
    """`values` by names that MLflow takes, where "/" groups them; what is not a number is left."""
    return {
        "/".join(_NOT_IN_NAMES.sub("_", part) for part in name.split("/"))[:_NAME_LENGTH]: float(
            value
        )
        for name, value in values.items()
        if isinstance(value, Real)
    }


def curve_points(figures: dict[str, Any]) -> dict[str, float]:
    """An epoch's figures by the names of their curves: {"train/loss": 0.2, "lr": 0.001}."""
    return {
        re.sub("^(train|validation)_", r"\1/", name): float(value)
        for name, value in figures.items()
        if isinstance(value, int | float)
    }


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The parts' figures by name: {"final/test/accuracy": 0.97, "final/test/accuracy_low": ...}."""
    flat: dict[str, float] = {}
    for key, value in _leaves(metrics, "/"):
        *names, last = key.split("/")
        if isinstance(value, int | float):
            name = "/".join(names) if last == "value" else key
            if last in ("low", "high"):
                name = f"{'/'.join(names)}_{last}"
            flat[f"final/{name}"[:_NAME_LENGTH]] = float(value)
    return flat


def _leaves(tree: dict[str, Any], between: str) -> list[tuple[str, Any]]:
    flat = []
    for key, value in tree.items():
        name = _NOT_IN_NAMES.sub("_", key)
        if isinstance(value, dict):
            flat += [(f"{name}{between}{rest}", leaf) for rest, leaf in _leaves(value, between)]
        else:
            flat.append((name, value))
    return flat


def own_tags(tags: Mapping[str, str | None]) -> dict[str, str]:
    """`tags` by names that are ours, those that have a value: {"parityline.bundle": "a@1"}."""
    return {
        f"parityline.{_NOT_IN_NAMES.sub('_', name)}"[:_NAME_LENGTH]: str(value)[:_TEXT_LENGTH]
        for name, value in tags.items()
        if value
    }


def source_tags(tags: Mapping[str, str | None], command: str) -> dict[str, str]:
    """`tags` as ours, and what MLflow's pages show as a run's user, source and version.

    command: of Parityline's, that makes the run.
    """
    named = own_tags(tags)
    named |= {"mlflow.source.name": f"parityline {command}", "mlflow.source.type": "LOCAL"}
    if commit := tags.get("commit"):
        named["mlflow.source.git.commit"] = commit.removesuffix("+changes")
    # A container's user may have no name.
    with contextlib.suppress(OSError, KeyError):
        named["mlflow.user"] = getpass.getuser()
    return named
