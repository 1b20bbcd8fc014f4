"""Temperature, calibration figures and the figures of each label, beside torchmetrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from artifacts.estimates import (
    difference_interval,
    label_counts,
    label_metrics,
    log_losses,
    wilson_interval,
)
from artifacts.networks import DeployedClassifier
from artifacts.preprocess import Preprocess
from training.calibration import (
    HIGHEST,
    LOWEST,
    calibration_figures,
    fit_temperature,
    probabilities_at,
    reliability_bins,
)
from training.metrics import area_under_curve, average_precision, classification_metrics


def drawn(
    seed: int, rows: int, classes: int, sharpness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from their own softmax, then sharpened: T = sharpness."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (rows, classes))
    draws = logits + generator.gumbel(size=logits.shape)
    return (logits * sharpness).astype(np.float32), draws.argmax(axis=1)


def loss_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = torch.from_numpy(logits).double() / temperature
    return float(torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels)))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_temperature_undoes_what_sharpened_the_logits(sharpness: float, classes: int) -> None:
    logits, labels = drawn(0, 20_000, classes, sharpness)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.05)


def test_no_temperature_nearby_is_better_than_the_fitted_one() -> None:
    logits, labels = drawn(1, 500, 5, 2.5)
    temperature = fit_temperature(logits, labels)
    best = loss_at(logits, labels, temperature)
    assert best < loss_at(logits, labels, 1.01 * temperature)
    assert best < loss_at(logits, labels, temperature / 1.01)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.001, 1000), wrong=st.floats(0, 1))
def test_the_temperature_is_bounded_exact_and_never_makes_validation_worse(
    seed: int, sharpness: float, wrong: float
) -> None:
    logits, labels = drawn(seed, 60, 3, sharpness)
    generator = np.random.default_rng(seed)
    labels = np.where(generator.random(60) < wrong, labels, logits.argmax(axis=1))
    temperature = fit_temperature(logits, labels)
    assert LOWEST <= temperature <= HIGHEST
    assert loss_at(logits, labels, temperature) <= loss_at(logits, labels, 1.0) + 1e-12
    assert float(np.float32(temperature)) == temperature == json.loads(json.dumps(temperature))


def test_rows_that_are_all_right_do_not_make_a_model_certain() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    logits = generator.normal(0, 0.1, (200, 4)).astype(np.float32)
    logits[np.arange(200), labels] += 2
    temperature = fit_temperature(logits, labels)
    assert LOWEST < temperature < 1
    confidence = probabilities_at(logits, temperature).max(axis=1).mean()
    # One row in 202 is taken to be wrong.
    assert 0.99 < confidence < 0.998


def test_too_few_rows_leave_the_temperature_alone() -> None:
    logits, labels = drawn(0, 50, 3, 5.0)
    assert fit_temperature(logits[:49], labels[:49]) == 1.0
    assert fit_temperature(logits, labels) > 2
    constant = np.zeros((80, 3), dtype=np.float32)
    assert fit_temperature(constant, np.arange(80) % 3) == 1.0


@pytest.mark.parametrize("outputs", [1, 3])
def test_measured_probabilities_have_the_bits_of_the_deployed_graph(outputs: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, outputs)
    model = DeployedClassifier(Preprocess((), (4,)), network, 1.0).eval()
    raw = torch.randn(300, 4, dtype=torch.float64)
    with torch.inference_mode():
        logits = model(raw)[0].numpy()
        model.temperature = 0.4130859375
        expected = model(raw)[1].numpy()
    np.testing.assert_array_equal(probabilities_at(logits, model.temperature), expected)


@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_figures_equal_torchmetrics(classes: int) -> None:
    logits, labels = drawn(3, 3000, classes, 1.7)
    probabilities = probabilities_at(logits, 1.0)
    figures = calibration_figures(probabilities, labels, keep_bins=False)
    tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
    expected = reference.multiclass_calibration_error(*tensors, num_classes=classes, n_bins=15)
    assert figures.ece == pytest.approx(float(expected), abs=1e-5)
    wanted = np.eye(classes)[labels]
    assert figures.brier.value == pytest.approx(((probabilities - wanted) ** 2).sum(1).mean())
    assert figures.log_loss.value == pytest.approx(loss_at(logits, labels, 1.0), rel=1e-5)
    assert figures.bins == ()


def test_bins_hold_their_upper_edge_and_confidence_one_is_in_the_last() -> None:
    certain = np.array([[1, 0, 0], [1, 0, 0], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4]], dtype=np.float32)
    bins = reliability_bins(certain, np.array([0, 1, 0, 2]))
    assert [entry.rows for entry in bins] == [0] * 6 + [2] + [0] * 7 + [2]
    assert (bins[14].confidence, bins[14].accuracy) == (1.0, 0.5)
    assert bins[6].accuracy == 1.0 and bins[6].confidence == pytest.approx(0.4)
    assert (bins[0].confidence, bins[0].accuracy) == (None, None)
    half = reliability_bins(np.array([[1 / 3, 1 / 3, 1 / 3]]), np.array([0]))
    assert half[4].rows == 1


def test_the_figures_of_each_label_equal_torchmetrics() -> None:
    logits, labels = drawn(4, 800, 6)
    answered = logits.argmax(axis=1)
    found = label_metrics(*label_counts(answered, labels, 6))
    tensors = torch.from_numpy(answered), torch.from_numpy(labels)
    for name in ("precision", "recall", "f1"):
        function = getattr(reference, f"multiclass_{name if name != 'f1' else 'f1_score'}")
        expected = function(*tensors, num_classes=6, average="none").tolist()
        estimates = [getattr(entry, name) for entry in found]
        assert [e.value for e in estimates] == pytest.approx(expected, abs=1e-6)
        assert all(0 <= e.low < e.value < e.high <= 1 for e in estimates)
    assert [entry.support for entry in found] == np.bincount(labels).tolist()
    confusion = reference.multiclass_confusion_matrix(*tensors, num_classes=6).tolist()
    metrics = classification_metrics(probabilities_at(logits, 1.0), labels, list("abcdef"))
    assert metrics.confusion == tuple(map(tuple, confusion))
    assert list(metrics.per_label) == list("abcdef")


def test_figures_of_labels_without_rows_or_answers_are_left_out() -> None:
    true, answered = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 0, 0])
    found = label_metrics(*label_counts(answered, true, 3))
    assert found[0].recall == wilson_interval(3, 4) and found[0].precision == wilson_interval(3, 5)
    assert found[1].recall is None and found[1].precision == wilson_interval(0, 1)
    assert found[2].precision is None and found[2].f1 is not None and found[2].f1.value == 0
    alone = np.zeros(5, dtype=np.int64)
    empty = label_metrics(*label_counts(alone, alone, 2))[1]
    assert (empty.precision, empty.recall, empty.f1, empty.support) == (None, None, None, 0)


def test_areas_under_curves_equal_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    logits, labels = drawn(5, 400, 2)
    # Ties, as those of a table with few values.
    probabilities = probabilities_at(logits.round(0), 1.0)
    area, precision = (
        function(probabilities, labels) for function in (area_under_curve, average_precision)
    )
    scores = probabilities[:, 1]
    assert area is not None and area.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    expected = average_precision_score(labels, scores)
    assert precision is not None and precision.value == pytest.approx(expected, abs=1e-6)
    assert precision.low < precision.value < precision.high
    logits, labels = drawn(6, 400, 4)
    several = probabilities_at(logits, 1.0)
    area = area_under_curve(several, labels)
    expected = roc_auc_score(labels, several.astype(np.float64), multi_class="ovr", average="macro")
    assert area is not None and area.value == pytest.approx(expected, abs=1e-5)
    assert area_under_curve(several, labels % 3) is None
    assert average_precision(probabilities, np.zeros(400, dtype=np.int64)) is None
    assert classification_metrics(several, labels).average_precision is None


def test_the_interval_of_a_difference_equals_the_published_one() -> None:
    # Newcombe 1998, table II, column (a), method 10: 56/70 - 48/80.
    found = difference_interval(wilson_interval(56, 70), wilson_interval(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


def test_a_certain_error_costs_what_float32_can_say() -> None:
    losses = log_losses(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1]))
    assert losses[0] == pytest.approx(-math.log(np.finfo(np.float32).tiny))
