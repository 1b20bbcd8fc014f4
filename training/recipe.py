"""A recipe: everything that decides what a run makes, as one frozen model read from TOML.

recipe = load_recipe("digits", ["train.epochs=5", "model.hidden=[32]"])
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from artifacts.configs import LinearNetwork, MlpNetwork, NetworkConfig
from artifacts.errors import DataError
from artifacts.inputs import Frozen
from artifacts.manifest import NAME_PATTERN

_KINDS: dict[Any, type[BaseModel]] = {"linear": LinearNetwork, "mlp": MlpNetwork}
Source = Literal["digits", "breast-cancer", "fashion-mnist", "mnist"]


class DataConfig(Frozen):
    """[data]: where labelled rows come from and how they are split.

    path: the folder that holds the files of a set that is not embedded; without one, `data` under
    the working directory, downloaded into where there is a network.
    val_fraction: of all rows, or of the training part where the set has a test part of its own.
    test_fraction: of all rows; unused where the set has a test part of its own.
    """

    source: Source
    path: str | None = None
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


class TrainConfig(Frozen):
    """[train]: how the weights are found.

    warmup: epochs of linear warm-up, fractions allowed. patience: epochs without a better
    validation loss before stopping. threads: torch's CPU threads, its own choice without one.
    """

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=1.0, ge=0, le=1e6)
    patience: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=512)


class ExportConfig(Frozen):
    """[export]: what a released bundle holds.

    golden: "real" keeps held-out rows in the bundle, "synthetic" made ones in the same ranges.
    max_batch_size: the largest batch that the gate proves and that serving and scoring use.
    """

    golden: Literal["real", "synthetic"] = "real"
    max_batch_size: int = Field(default=1024, ge=64, le=65536)


class Recipe(Frozen):
    """A whole recipe; `summary` is its line in `parityline recipes`."""

    name: str = Field(pattern=NAME_PATTERN)
    summary: str = ""
    data: DataConfig
    model: NetworkConfig = MlpNetwork()
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()


def builtin_recipes() -> dict[str, Recipe]:
    """The recipes that come with Parityline, by name."""
    recipes = {}
    for file in sorted(_folder().iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            recipe = _validate(tomllib.loads(file.read_text(encoding="utf-8")), file.name)
            recipes[recipe.name] = recipe
    return recipes


def load_recipe(
    recipe: str, overrides: Sequence[str] = (), *, name: str | None = None, data: str | None = None
) -> Recipe:
    """A built-in recipe by name, or a TOML file by path, with overrides applied.

    overrides: "section.key=value", the value in TOML's syntax or a bare string. "model.kind="
    with another kind starts that network from its defaults.
    name, data: shorthands for the keys name and data.path.
    Raises DataError naming the recipe, key or value.
    """
    content, label = _read(recipe), f"recipe {recipe}"
    pairs = [_parse_override(text) for text in overrides]
    if name is not None:
        pairs.append((["name"], name))
    if data is not None:
        pairs.append((["data", "path"], data))
    model = content.setdefault("model", {})
    if isinstance(model, dict):
        model.setdefault("kind", "mlp")
        for key, value in pairs:
            if key == ["model", "kind"] and model["kind"] != value:
                # Its other keys are of another kind; those set here, in any order, stay.
                content["model"] = model = {"kind": value}
    for key, value in pairs:
        section = content
        for depth, part in enumerate(key[:-1]):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise DataError(f"--set {'.'.join(key)}: {'.'.join(key[: depth + 1])} is a value")
        section[key[-1]] = value
    return _validate(content, label)


def _read(recipe: str) -> dict[str, Any]:
    if "/" not in recipe and not recipe.endswith(".toml"):
        known = builtin_recipes()
        if recipe not in known:
            names = ", ".join(known)
            raise DataError(f"no recipe named {recipe!r}; there are: {names}; or a .toml file")
        return known[recipe].model_dump(mode="json", exclude_unset=True)
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"recipe {recipe}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"recipe {recipe}: not a UTF-8 text file") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"recipe {recipe}: not TOML: {error}") from error


def _folder() -> resources.abc.Traversable:
    return resources.files("training") / "recipes"


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise DataError(f"--set {text!r}: expected key=value, such as train.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return parts, value.strip()
    return parts, parsed["value"] if len(parsed) == 1 else value.strip()


def _validate(content: dict[str, Any], label: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(entry) for entry in error.errors()]
        raise DataError(f"{label}: {'; '.join(lines)}") from error


def _explain(entry: Any) -> str:
    """One of pydantic's errors with the recipe's key, and what is allowed there."""
    # Inside a union the second part is its tag, such as "mlp" in model.mlp.hidden: not a key.
    location = [part for part in entry["loc"] if part not in _KINDS]
    key = ".".join(str(part) for part in location)
    if entry["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in entry["loc"][:-1]:
            section = _KINDS.get(part) or section.model_fields[part].annotation
        return f"unknown key {key}; allowed: {', '.join(section.model_fields)}"
    if entry["type"] == "missing":
        return f"{key} is required"
    found = entry.get("input")
    shown = "" if isinstance(found, dict) else f", found {found!r}"
    return f"{key}: {entry['msg'][0].lower()}{entry['msg'][1:]}{shown}"
