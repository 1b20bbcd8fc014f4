"""5-fold cross-validation, twice, of an embedded set's recipe, beside the baselines."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import torch
from sklearn.model_selection import StratifiedKFold

from artifacts.networks import DeployedClassifier, build_network
from artifacts.preprocess import Preprocess
from benchmarks.baselines import Figures, baselines_on
from training.batches import Batches
from training.data import Dataset, Part, assemble, breast_cancer_table, dataset_of_tables, digits
from training.encoding import preprocessing
from training.evaluation import probabilities_of
from training.fit import fit
from training.metrics import classification_metrics
from training.recipe import Recipe, load_recipe
from training.schedule import resolve_schedule

# Only to be shown while training: what is kept does not depend on it (train.keep = "last").
_VALIDATION = 0.05
REPEATS = 2


def cross_validate(name: str) -> dict[str, list[Figures]]:
    """Ten runs of the recipe, and of each baseline on the same folds."""
    recipe = load_recipe(name)
    assert recipe.train.keep == "last" and recipe.train.patience == 0
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"val_fraction": _VALIDATION})}
    )
    torch.set_num_threads(recipe.train.threads or 1)
    found: dict[str, list[Figures]] = {}
    for repeat in range(REPEATS):
        for fold, dataset in enumerate(_folds(recipe, repeat)):
            figures = run(recipe, dataset, seed=repeat)
            found.setdefault(recipe.model.kind, []).append(figures)
            print(f"{name} repeat {repeat} fold {fold}: {figures}", flush=True)
            for model, baseline in baselines_on(dataset, repeat).items():
                found.setdefault(model, []).append(baseline)
    return found


def run(recipe: Recipe, dataset: Dataset, seed: int) -> Figures:
    """The recipe's network trained on one fold, without export."""
    began = time.process_time()
    config = resolve_schedule(recipe.train, len(dataset.train)).model_copy(update={"seed": seed})
    torch.manual_seed(seed)
    steps = preprocessing(dataset, recipe.model)
    network = build_network(recipe.model, dataset.input.shape, steps, len(dataset.labels))
    network.to(memory_format=torch.channels_last)
    model = DeployedClassifier(Preprocess(steps, dataset.input.shape), network, 1.0)
    parts = {name: Batches(part, torch.device("cpu")) for name, part in dataset.parts.items()}
    fit(network, model.preprocess, parts["train"], parts["validation"], config, lambda *_: None)
    model.eval()
    train, test = (
        classification_metrics(probabilities_of(model, parts[name]), dataset.parts[name].labels)
        for name in ("train", "test")
    )
    return Figures(
        accuracy=test.accuracy.value,
        auc=test.auc and test.auc.value,
        log_loss=test.log_loss.value,
        gap=train.accuracy.value - test.accuracy.value,
        seconds=time.process_time() - began,
    )


def _folds(recipe: Recipe, repeat: int) -> list[Dataset]:
    splitter = StratifiedKFold(5, shuffle=True, random_state=repeat)
    if recipe.data.source == "digits":
        spec, labels, whole = digits()
        return [
            assemble(
                recipe.data, spec, labels,
                {name: Part(whole.raw[rows], whole.labels[rows]) for name, rows in fold},
            )
            for fold in _named(splitter, whole.labels)
        ]  # fmt: skip
    config, table = breast_cancer_table(recipe.data)
    labels_column = np.array(table["diagnosis"].to_pylist())
    return [
        dataset_of_tables(config, {name: table.take(pa.array(rows)) for name, rows in fold})
        for fold in _named(splitter, labels_column)
    ]


def _named(
    splitter: StratifiedKFold, labels: np.ndarray
) -> list[tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]]:
    return [(("train", train), ("test", test)) for train, test in splitter.split(labels, labels)]
