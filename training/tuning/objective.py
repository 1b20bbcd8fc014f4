"""One trial: a recipe is trained, and its figure is that of rows that it was not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from artifacts.configs import TableNetwork
from artifacts.errors import DataError
from artifacts.manifest import Epoch
from artifacts.networks import DeployedClassifier
from artifacts.steps import Step
from training.batches import Batches
from training.build import build_model
from training.data import Dataset, Part, load_dataset, take
from training.encoding import preprocessing
from training.evaluation import probabilities_of
from training.fit import Fit, fit, monitored
from training.interrupts import Interrupts
from training.metrics import area_under_curve
from training.recipe import DataConfig, Recipe
from training.schedule import resolve_schedule
from training.transfer import with_backbone_defaults

# A trial's progress, in steps at which it may be pruned: as shares of its own epochs, because at
# the same epoch two trials of different length are at different points of their schedules.
PROGRESS = 9


@dataclass
class Split:
    """One split of the rows, ready on the device. dataset: its training and validation parts."""

    dataset: Dataset
    train: Batches
    validation: Batches
    _steps: dict[tuple[object, ...], tuple[Step, ...]] = field(default_factory=dict)

    def steps(self, recipe: Recipe) -> tuple[Step, ...]:
        """The preprocessing for the recipe's network, computed once."""
        bins = recipe.model.bins if isinstance(recipe.model, TableNetwork) else 0
        key = (bins, recipe.data.pixels)
        if key not in self._steps:
            self._steps[key] = preprocessing(self.dataset, recipe.model, recipe.data.pixels)
        return self._steps[key]


class Ground:
    """The data of a study, read once, split, and kept on the device."""

    def __init__(self, folds: int, device: str) -> None:
        self.device = device
        self._folds = folds
        self._kept: tuple[DataConfig, Dataset, list[Split]] | None = None

    def dataset(self, recipe: Recipe) -> Dataset:
        """The recipe's whole set; for what happens after the search."""
        return self._read(recipe)[0]

    def splits(self, recipe: Recipe) -> list[Split]:
        """One, or one for each fold."""
        return self._read(recipe)[1]

    def whole(self, recipe: Recipe) -> Split:
        """The split that a run trains on, whatever the folds."""
        if self._folds == 1:
            return self.splits(recipe)[0]
        return self._split(self.dataset(recipe), recipe)

    def test(self, recipe: Recipe) -> Batches:
        """The test part. No trial sees it."""
        return Batches(self.dataset(recipe).test, torch.device(self.device), recipe.data.workers)

    def _read(self, recipe: Recipe) -> tuple[Dataset, list[Split]]:
        if self._kept is None or self._kept[0] != recipe.data:
            self._kept = None  # not two at a time
            dataset = load_dataset(recipe.data)
            parts = [dataset] if self._folds == 1 else fold(dataset, self._folds, recipe.data.seed)
            self._kept = recipe.data, dataset, [self._split(part, recipe) for part in parts]
        return self._kept[1], self._kept[2]

    def _split(self, dataset: Dataset, recipe: Recipe) -> Split:
        device, workers = torch.device(self.device), recipe.data.workers
        return Split(
            dataset,
            Batches(dataset.train, device, workers),
            Batches(dataset.validation, device, workers),
        )


def check_folds(dataset: Dataset, folds: int) -> None:
    """Raise DataError for pictures that are not in memory, and for classes with too few rows."""
    parts = (dataset.train, dataset.validation)
    labels = np.concatenate([part.labels for part in parts])
    counts = np.bincount(labels, minlength=len(dataset.labels))
    if counts.min() < folds:
        name = dataset.labels[int(counts.argmin())]
        raise DataError(
            f"tune.folds: expected at least {folds} rows of each class for {folds} folds, found "
            f"{counts.min()} of {name!r}"
        )
    if not all(isinstance(part.raw, np.ndarray) for part in parts):
        raise DataError(
            "tune.folds: the pictures do not fit in memory (data.memory_mb), so they are not cut "
            "into folds; take tune.folds=1"
        )


def fold(dataset: Dataset, folds: int, seed: int) -> list[Dataset]:
    """Training and validation part together, cut into so many validation parts, stratified.

    What a column's categories and missing cells become stays as the training part had it.
    Raises DataError as `check_folds`.
    """
    from sklearn.model_selection import StratifiedKFold

    check_folds(dataset, folds)
    parts = (dataset.train, dataset.validation)
    both = Part(
        np.concatenate([np.asarray(part.raw) for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [
        dataclasses.replace(dataset, train=take(both, train), validation=take(both, validation))
        for train, validation in splitter.split(both.labels, both.labels)
    ]


def steps_of(recipe: Recipe) -> int:
    """How many steps a trial has: PROGRESS for each of its trainings."""
    return PROGRESS * recipe.tune.folds * recipe.tune.seeds


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed; its split stays the same."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def trial_value(
    recipe: Recipe,
    ground: Ground,
    report: Callable[[int, float], None],
    show: Callable[[Epoch, float], None],
    interrupts: Interrupts | None = None,
) -> float:
    """The recipe's objective: the mean over tune.folds and tune.seeds of what is kept in the end.

    report: called with a step and the figure so far, for each of PROGRESS steps of each run (fewer
    where a run has fewer epochs); what it raises ends the trial. show: called after each epoch.
    Raises DataError where the training diverges or the recipe does not fit the data.
    """
    recipe = with_backbone_defaults(recipe)
    ended: list[float] = []
    for split in ground.splits(recipe):
        for index in range(recipe.tune.seeds):
            seeded = with_seed(recipe, recipe.train.seed + index)
            training = Training(seeded, split, ground.device, ended, report, show)
            training.run(interrupts)
            ended.append(training.value)
    return float(np.mean(ended))


class Training:
    """One training of a trial, followed: `values` is the objective as if it ended at each epoch.

    before: the values of the trial's earlier trainings, with which what is reported is averaged.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: Split,
        device: str,
        before: list[float] | None = None,
        report: Callable[[int, float], None] | None = None,
        show: Callable[[Epoch, float], None] | None = None,
    ) -> None:
        self.built = build_model(recipe, split.dataset, device, split.steps(recipe))
        self.config = resolve_schedule(recipe.train, len(split.dataset.train))
        self.values: list[float] = []
        self._objective = recipe.tune.objective
        self._split = split
        self._before, self._report, self._show = before or [], report, show
        self._history: list[Epoch] = []
        self._figures: list[float] = []
        self._area = 0.0

    @property
    def model(self) -> DeployedClassifier:
        """What is trained, at temperature 1."""
        return self.built.model

    @property
    def value(self) -> float:
        """The objective as of the last epoch."""
        return self.values[-1]

    def run(self, interrupts: Interrupts | None = None) -> Fit:
        """Train the model."""
        split = self._split
        return fit(
            self.model.network, self.model.preprocess, split.train, split.validation,
            self.config, self.epoch, self.built.backbone, interrupts=interrupts,
            examine=self.examine,
        )  # fmt: skip

    def examine(self, network: nn.Module) -> None:
        """Take the area under the curve, where it is the objective.

        It is no part of an epoch's record, as it costs more than an epoch of a small network.
        """
        if self._objective == "auc":
            model = DeployedClassifier(self.model.preprocess, network, temperature=1.0).eval()
            probabilities = probabilities_of(model, self._split.validation)
            self._area = area_of(probabilities, self._split.dataset.validation.labels)

    def epoch(self, record: Epoch, seconds: float) -> None:
        """Take an epoch's figures, show and report them."""
        figures = {
            "accuracy": record.validation_accuracy,
            "log_loss": record.validation_loss,
            "auc": self._area,
        }
        self._history.append(record)
        self._figures.append(figures[self._objective])
        kept = len(self._figures) - 1
        if self.config.keep == "best":
            order = [monitored(earlier, self.config) for earlier in self._history]
            kept = order.index(min(order))
        self.values.append(self._figures[kept])
        if self._show is not None:
            self._show(record, seconds)
        assert self.config.epochs != "auto"
        done = PROGRESS * record.epoch // self.config.epochs
        if self._report is not None and done > PROGRESS * (record.epoch - 1) // self.config.epochs:
            step = PROGRESS * len(self._before) + done
            self._report(step, float(np.mean([*self._before, self.value])))


def area_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """ROC AUC. Raises DataError where a label has no row, or all of them."""
    area = area_under_curve(probabilities, labels)
    if area is None:
        raise DataError("tune.objective: the AUC needs rows of every label in the validation part")
    return area.value
