"""What a search is: all that its workers must know, and what makes it the same one later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from artifacts.inputs import Frozen
from artifacts.manifest import DataInfo
from artifacts.shelves import NAME_PATTERN
from training.recipe import Recipe
from training.run_record import flat

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["hyperband", "median", "none"]
_MOST_DIFFERENCES = 8


class Plan(Frozen):
    """One `parityline tune`. Workers get it as JSON.

    recipe: what is searched around, with its space. folder: what the study keeps beside its
    trials. storage: where those lie, None for a journal in the folder. device: of each worker.
    together: how many trials of equal shape a worker trains at once; None: what pays.
    """

    recipe: Recipe
    study: str = Field(pattern=NAME_PATTERN)
    folder: Path
    storage: str | None = None
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "hyperband"
    device: Literal["cpu", "cuda"] = "cpu"
    together: int | None = Field(default=None, ge=1, le=4096)

    @property
    def direction(self) -> str:
        """Of the objective."""
        return "minimize" if self.recipe.tune.objective == "log_loss" else "maximize"


def trained_content(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides its training: no names, no paths, nothing of the machine."""
    return recipe.model_dump(
        mode="json",
        exclude={
            "name": True,
            "summary": True,
            "data": {"path", "test_path", "workers", "memory_mb"},
            "train": {"device", "threads"},
            "export": True,
            "tune": True,
        },
    )


def identity(recipe: Recipe, info: DataInfo) -> dict[str, Any]:
    """What a study is of: its recipe with the space, and its data."""
    content = {**trained_content(recipe), "tune": recipe.tune.model_dump(mode="json")}
    data = info.model_dump(mode="json", include={"source", "fingerprint", "rows"})
    return {"recipe": content, "data": data}


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What of two identities differs, each with both values; "" where nothing does."""
    found = []
    for what, label in (("recipe", ""), ("data", "the data's ")):
        before, after = flat(there.get(what, {})), flat(now[what])
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                found.append(f"{label}{key}: {before.get(key)!r} then, {after.get(key)!r} now")
    more = len(found) - _MOST_DIFFERENCES
    return "; ".join(found[:_MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
