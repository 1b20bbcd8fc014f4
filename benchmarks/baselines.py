"""scikit-learn's classifiers on the very split that a recipe trains on."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from artifacts.configs import LinearNetwork
from artifacts.inputs import TableInput
from artifacts.preprocess import Preprocess
from training.data import Dataset, load_dataset
from training.encoding import preprocessing
from training.metrics import classification_metrics
from training.recipe import Recipe

# The time of an SVM grows with the square of the rows.
_SVM_ROWS = 12_000
# Trees on hundreds of pixels and ten classes take longer than all the rest.
_HGB_CELLS = 3_000_000


@dataclass(frozen=True)
class Figures:
    """Of one fitted model, on the test part. gap: train - test accuracy."""

    accuracy: float
    auc: float | None
    log_loss: float | None
    gap: float
    seconds: float


def fit_baselines(recipe: Recipe) -> dict[str, Figures]:
    """The baselines on a recipe's set."""
    # They choose for themselves what is rare.
    config = recipe.data.model_copy(update={"min_count": 1})
    return baselines_on(load_dataset(config), recipe.train.seed)


def baselines_on(dataset: Dataset, seed: int) -> dict[str, Figures]:
    """Each fitted on training and validation part together. Trees take cells as they are."""
    parts = (dataset.train, dataset.validation)
    raw = np.concatenate([np.asarray(part.raw) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    test = np.asarray(dataset.test.raw)
    categorical = None
    if isinstance(dataset.input, TableInput):
        encoder = Preprocess(preprocessing(dataset, LinearNetwork()), dataset.input.shape)
        dense, dense_test = (encoder(torch.from_numpy(rows)).numpy() for rows in (raw, test))
        widths = [(c.type in {"category", "boolean"}, c.width) for c in dataset.input.columns]
        categorical = [flag for flag, width in widths for _ in range(width)]
    else:
        raw, test = (rows.reshape(len(rows), -1) for rows in (raw, test))
        dense, dense_test = raw / 255.0, test / 255.0
    models: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {
        "logistic regression": (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)), dense, dense_test,
        ),
        "random forest": (RandomForestClassifier(random_state=seed), dense, dense_test),
    }  # fmt: skip
    if len(raw) <= _SVM_ROWS:
        # Pixels are alike already; scaling each by its own deviation makes noise of the margins.
        table = isinstance(dataset.input, TableInput)
        svm = make_pipeline(StandardScaler(), SVC()) if table else SVC()
        models["RBF SVM"] = (svm, dense, dense_test)
    if raw.size <= _HGB_CELLS:
        trees = HistGradientBoostingClassifier(categorical_features=categorical, random_state=seed)
        models["HGB"] = (trees, raw, test)
    return {
        name: _fit(model, rows, labels, held, dataset.test.labels)
        for name, (model, rows, held) in models.items()
    }


def _fit(
    model: Any, rows: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Figures:
    began = time.process_time()
    with warnings.catch_warnings():
        # lbfgs on pixels stops at its limit, near enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, labels)
    seconds = time.process_time() - began
    train_accuracy = float(model.score(rows, labels))
    if hasattr(model, "predict_proba"):
        metrics = classification_metrics(_all_classes(model, test, labels), test_labels)
        auc, loss = metrics.auc and metrics.auc.value, metrics.log_loss.value
    else:
        scores = model.decision_function(test)
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
        # Ranks are all that an AUC needs.
        found = classification_metrics(np.clip(_softmax(scores), 1e-30, 1), test_labels)
        auc, loss = found.auc and found.auc.value, None
    accuracy = float(model.score(test, test_labels))
    return Figures(accuracy, auc, loss, train_accuracy - accuracy, seconds)


def _all_classes(model: Any, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found: np.ndarray = model.predict_proba(rows)
    probabilities = np.zeros((len(rows), int(labels.max()) + 1))
    probabilities[:, model.classes_] = found
    return probabilities


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares
