"""A recipe ready to be timed, and timing in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from training.batches import Batches
from training.checkpoints import open_checkpoints
from training.data import Dataset, load_dataset
from training.encoding import preprocessing
from training.fit import fit
from training.recipe import Recipe
from training.run_record import RunRecord

REPEATS = 5
# Nothing that the bare step does not do.
PLAIN = [
    "train.augment.flip=false", "train.augment.crop=0", "train.augment.mixup=0", "train.ema=0",
    "train.label_smoothing=0", "train.warmup=0", "train.patience=0",
]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A recipe with its data read and its preprocessing made."""

    recipe: Recipe
    dataset: Dataset
    preprocess: Preprocess
    steps: tuple[Any, ...]
    device: torch.device

    def network(self, seed: int = 0) -> nn.Module:
        """A fresh one."""
        torch.manual_seed(seed)
        shape, classes = self.dataset.input.shape, len(self.dataset.labels)
        network = build_network(self.recipe.model, shape, self.steps, classes)
        return network.to(memory_format=torch.channels_last).to(self.device)  # type: ignore[call-overload]

    def batches(self, part: str) -> Batches:
        """One part's."""
        return Batches(self.dataset.parts[part], self.device, self.recipe.data.workers)


def setting(recipe: Recipe, device: torch.device) -> Setting:
    """Read the recipe's data."""
    dataset = load_dataset(recipe.data)
    steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
    return Setting(
        recipe, dataset, Preprocess(steps, dataset.input.shape).to(device), steps, device
    )


def our_epoch(of: Setting, epochs: int = 1) -> Callable[[], None]:
    """`fit` with checkpoints, for one epoch."""
    train, validation = of.batches("train"), of.batches("validation")
    config = of.recipe.train.model_copy(update={"epochs": epochs})

    def run() -> None:
        network = of.network()
        record = RunRecord(recipe={}, data={}, environment={})
        with (
            tempfile.TemporaryDirectory() as store,
            open_checkpoints(Path(store), "bench", record, resume=False) as (checkpoints, _),
        ):
            fit(
                network, of.preprocess, train, validation, config, lambda *_: None,
                checkpoints=checkpoints,
            )  # fmt: skip

    return run


def in_turns(
    device: torch.device, *runs: Callable[[], None], count: int = REPEATS
) -> list[list[float]]:
    """Seconds of each, `count` times in turns, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(count + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                found.append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> str:
    """Median (min to max)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
