"""The verdict: each kind on curves that show it, and no alarm where none is due."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from artifacts.manifest import Epoch, Metrics, Verdict
from training.metrics import classification_metrics
from training.recipe import Recipe, builtin_recipes, load_recipe
from training.verdict import judge


def part(rows: int, accuracy: float, confidence: float, classes: int = 4) -> Metrics:
    """Answers that are right in this share of the rows, with this probability each."""
    labels = np.arange(rows) % classes
    answered = np.where(np.arange(rows) < round(accuracy * rows), labels, (labels + 1) % classes)
    probabilities = np.full((rows, classes), (1 - confidence) / (classes - 1), dtype=np.float32)
    probabilities[np.arange(rows), answered] = confidence
    return classification_metrics(probabilities, labels, [str(k) for k in range(classes)])


def curves(validation: Sequence[float], train: Sequence[float] | None = None) -> tuple[Epoch, ...]:
    losses = train if train is not None else np.linspace(1.2, 0.2, len(validation)).tolist()
    return tuple(
        Epoch(
            epoch=number, train_loss=loss, train_accuracy=0.5, validation_loss=held,
            validation_accuracy=0.5, lr=0.001,
        )
        for number, (loss, held) in enumerate(zip(losses, validation, strict=True), start=1)
    )  # fmt: skip


def verdict(
    history: tuple[Epoch, ...],
    train: Metrics,
    test: Metrics,
    kept_epoch: int | None = None,
    error: float = 0.01,
    recipe: Recipe | None = None,
) -> Verdict:
    kept = len(history) if kept_epoch is None else kept_epoch
    recipe = recipe or load_recipe("digits", ["train.epochs=20", "train.keep=last"])
    return judge(history, kept, {"train": train, "test": test}, error, recipe)


GOOD, WORSE = part(2000, 0.97, 0.97), part(500, 0.96, 0.96)
FALLING_THEN_RISING = [1.0, 0.7, 0.5, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
CONVERGED = [1.0, 0.6, 0.4, 0.32, 0.3, 0.29, 0.285, 0.281, 0.28, 0.28]


def test_overfitting_is_dated_where_validation_loss_was_lowest() -> None:
    found = verdict(curves(FALLING_THEN_RISING), GOOD, WORSE)
    assert (found.kind, found.since_epoch) == ("overfitting", 4)
    assert "since epoch 4" in found.text and "0.4000 to 0.6500" in found.text
    assert found.advice[0] == "train.keep=best (now last)"


def test_a_rise_whose_start_is_kept_counts_only_beside_a_gap() -> None:
    spared = verdict(curves(FALLING_THEN_RISING), GOOD, WORSE, kept_epoch=4)
    assert (
        spared.kind == "fine"
        and "rose after epoch 4, the weights of epoch 4 are kept" in spared.text
    )
    before = verdict(curves(FALLING_THEN_RISING), GOOD, WORSE, kept_epoch=2)
    assert before.kind == "fine"
    found = verdict(curves(FALLING_THEN_RISING), part(2000, 1.0, 0.99), WORSE, kept_epoch=4)
    assert (found.kind, found.since_epoch) == ("overfitting", 4)
    assert "the weights of epoch 4, before it rose, are kept" in found.text
    assert not any(line.startswith("train.keep") for line in found.advice)


@pytest.mark.parametrize(
    ("validation", "train", "error", "why"),
    [
        (CONVERGED, None, 0.01, "it does not rise"),
        (FALLING_THEN_RISING, None, 0.7, "the validation part is too small to say so"),
        ([1.0, 0.4, 0.6, 0.41, 0.62, 0.42, 0.61, 0.43, 0.6, 0.45], None, 0.01, "it jumps about"),
        (FALLING_THEN_RISING, [0.5] * 10, 0.01, "training loss does not fall"),
        ([*CONVERGED[:-1], 0.6], None, 0.01, "one epoch is no rise"),
    ],
)
def test_noise_is_no_overfitting(
    validation: list[float], train: list[float] | None, error: float, why: str
) -> None:
    found = verdict(curves(validation, train), GOOD, WORSE, error=error)
    assert (found.kind, found.advice) == ("fine", ()), why


def test_a_large_gap_is_overfitting_only_beyond_its_interval() -> None:
    history, learnt = curves(CONVERGED), part(2000, 1.0, 0.99)
    found = verdict(history, learnt, part(400, 0.85, 0.9))
    assert (found.kind, found.since_epoch) == ("overfitting", None)
    assert found.gap.value == pytest.approx(0.15) and found.gap.low > 0.1
    assert "100.0% of the training rows are right and 85.0% of the test rows" in found.text
    assert verdict(history, learnt, part(400, 0.93, 0.9)).kind == "fine"
    # One row of eight: a gap of 12 points that may be none.
    assert verdict(history, learnt, part(8, 0.875, 0.9)).kind == "fine"


def test_probabilities_that_hold_for_training_rows_alone_are_overfitting() -> None:
    def rare(confidence: float, rows: int) -> Metrics:
        """One row in twenty has the second label; the first is answered to all of them."""
        labels = (np.arange(rows) % 20 == 0).astype(np.int64)
        second = np.where(labels == 1, confidence, 0.05).astype(np.float32)
        return classification_metrics(np.stack([1 - second, second], axis=1), labels, ["no", "yes"])

    train, test = rare(0.49, 4000), rare(0.05, 1000)
    assert train.accuracy.value == test.accuracy.value
    found = verdict(curves(CONVERGED), train, test)
    assert found.kind == "overfitting" and "log loss is" in found.text
    assert verdict(curves(CONVERGED), train, rare(0.4, 1000)).kind == "fine"


def test_nothing_learnt_is_underfitting() -> None:
    chance = part(2000, 0.26, 0.3)
    found = verdict(curves([1.39] * 10), chance, part(500, 0.25, 0.3))
    assert found.kind == "underfitting" and "do the labels belong" in found.text
    # Rare labels: accuracy is no better than the frequent label's, but the order is right.
    labels = (np.arange(1000) % 20 == 0).astype(np.int64)
    second = np.where(labels == 1, 0.4, 0.3).astype(np.float32)
    ranked = classification_metrics(np.stack([1 - second, second], axis=1), labels, ["no", "yes"])
    assert verdict(curves(CONVERGED), ranked, ranked).kind == "fine"


@pytest.mark.parametrize(
    "validation",
    [
        [1.3, 1.1, 0.95, 0.85, 0.76, 0.7],
        # With annealing: 7% in the second half, but a fifth of what was learnt at all.
        [1.37, 1.33, 1.29, 1.25, 1.21, 1.2],
        [1.1, 0.7],
        [0.9],
    ],
)
def test_a_loss_that_still_falls_asks_for_more_epochs(validation: list[float]) -> None:
    epochs = f"train.epochs={len(validation)}"
    recipe = load_recipe("digits", [epochs, "train.keep=last"])
    found = verdict(curves(validation), part(2000, 0.8, 0.8), part(500, 0.79, 0.8), recipe=recipe)
    assert found.kind == "underfitting" and "still fell" in found.text
    assert found.advice[0].startswith(f"train.epochs={max(10, 2 * len(validation))} ")


def test_a_falling_loss_is_fine_where_the_training_rows_are_learnt_or_a_gap_shows() -> None:
    history = curves([1.3, 1.1, 0.95, 0.85, 0.76, 0.7])
    assert verdict(history, part(2000, 0.99, 0.99), WORSE).kind == "fine"
    assert verdict(history, part(2000, 0.9, 0.9), part(2000, 0.84, 0.85)).kind == "fine"
    assert verdict(curves(CONVERGED), part(2000, 0.8, 0.8), part(500, 0.79, 0.8)).kind == "fine"


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
@pytest.mark.parametrize("extra", [[], ["data.limit=100"], ["model.kind=linear"]])
def test_every_advice_is_something_that_set_takes(name: str, extra: list[str]) -> None:
    def with_epochs(*overrides: str) -> Recipe:
        return load_recipe(name, [*extra, "train.epochs=6", *overrides])

    recipe = with_epochs()
    cases = (
        (curves(FALLING_THEN_RISING), GOOD, WORSE),
        (curves([1.39] * 10), part(2000, 0.26, 0.3), part(500, 0.25, 0.3)),
        (curves([1.1, 0.7]), part(2000, 0.8, 0.8), part(500, 0.79, 0.8)),
    )
    for history, train, test in cases:
        advice = verdict(history, train, test, recipe=recipe).advice
        assert 1 <= len(advice) <= 4
        for line in advice:
            changed = with_epochs(line.split(" ")[0].rstrip(":,"))
            assert changed != recipe, line
