"""A recipe, epochs, metrics and a run's origin as the flat names and texts that MLflow takes."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from typing import Any

# MLflow's limits, and what it does not take in a name; a "/" in a key would make a folder of it.
_NAME_LENGTH, _TEXT_LENGTH = 250, 6000
_NOT_IN_NAMES = re.compile(r"[^\w.\- :]|^\.*$")


def flat_params(recipe: dict[str, Any]) -> dict[str, str]:
    """A recipe's keys and values as texts, with names that MLflow takes: {"train.lr": "0.001"}."""
    flat: dict[str, str] = {}
    for key, value in _leaves(recipe, "."):
        text = value if isinstance(value, str) else json.dumps(value)
        flat[key[:_NAME_LENGTH]] = text[:_TEXT_LENGTH]
    return flat


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


def source_tags(tags: dict[str, str | None]) -> dict[str, str]:
    """`tags` as ours, and what MLflow's pages show as a run's user, source and version."""
    named = {f"parityline.{name}": value for name, value in tags.items() if value}
    named |= {"mlflow.source.name": "parityline train", "mlflow.source.type": "LOCAL"}
    if commit := tags.get("commit"):
        named["mlflow.source.git.commit"] = commit.removesuffix("+changes")
    # A container's user may have no name.
    with contextlib.suppress(OSError, KeyError):
        named["mlflow.user"] = getpass.getuser()
    return named
