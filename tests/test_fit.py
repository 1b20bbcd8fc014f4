from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from artifacts.configs import LinearNetwork, MlpNetwork
from artifacts.errors import DataError
from artifacts.estimates import confusion_matrix, mean_interval, wilson_interval
from artifacts.manifest import Epoch
from artifacts.networks import build_network
from training.batches import Batches
from training.data import Part
from training.fit import fit
from training.losses import loss_of, predicted_class
from training.metrics import classification_metrics
from training.recipe import TrainConfig

CPU = torch.device("cpu")


def rows(count: int, classes: int = 3, seed: int = 0) -> Part:
    """Gaussian clusters that a linear model separates well but not wholly."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centers = np.random.default_rng(99).normal(0, 2, (classes, 5))
    raw = (centers[labels] + generator.normal(0, 1, (count, 5))).astype(np.float32)
    return Part(raw, labels)


def batches(part: Part) -> Batches:
    return Batches(part, CPU)


def train(config: TrainConfig, classes: int = 3, count: int = 300, model=None):
    torch.manual_seed(1)
    network = build_network(model or MlpNetwork(hidden=(16,)), (5,), (), classes)
    seen: list[Epoch] = []
    result = fit(
        network, nn.Identity(), batches(rows(count, classes)), batches(rows(100, classes, seed=5)),
        config, lambda record, _: seen.append(record),
    )  # fmt: skip
    return network, result, seen


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("classes", [2, 3])
def test_every_optimizer_learns_both_tasks(optimizer: str, classes: int) -> None:
    config = TrainConfig(epochs=12, batch_size=32, optimizer=optimizer, lr=0.02)
    network, result, seen = train(config, classes)
    assert result.history == tuple(seen)
    assert seen[-1].validation_loss < 0.6 * seen[0].validation_loss
    assert max(record.validation_accuracy for record in seen) > 0.8
    assert not network.training


def test_the_same_seed_gives_bitwise_the_same_weights_and_another_does_not() -> None:
    config = TrainConfig(epochs=3, batch_size=32)
    first, second = (train(config)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = train(TrainConfig(epochs=3, batch_size=32, seed=7))[0].state_dict()
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_early_stopping_keeps_the_weights_of_the_best_epoch() -> None:
    config = TrainConfig(
        epochs=200, batch_size=16, lr=0.05, patience=4, schedule="constant", weight_decay=0.0
    )
    network, result, seen = train(config, count=40, model=MlpNetwork(hidden=(64,), dropout=0.0))
    assert result.stopped_early and len(seen) == result.kept_epoch + 4
    best = min(seen, key=lambda record: record.validation_loss)
    assert best.epoch == result.kept_epoch
    held = rows(100, seed=5)
    with torch.no_grad():
        loss = loss_of(network(torch.from_numpy(held.raw)), torch.from_numpy(held.labels))
    assert loss.item() == pytest.approx(best.validation_loss, rel=1e-5)


def test_a_loss_that_is_no_number_stops_and_says_what_to_try() -> None:
    config = TrainConfig(epochs=50, optimizer="sgd", lr=1e18, warmup=0, weight_decay=0)
    with pytest.raises(DataError, match=r"the loss became (nan|inf).*in epoch \d+.*lower train.lr"):
        train(config, model=MlpNetwork(hidden=(16,), batch_norm=False))


def test_a_last_batch_of_one_row_does_not_end_a_run() -> None:
    _, result, _ = train(TrainConfig(epochs=1, batch_size=32), count=33)
    assert len(result.history) == 1


def test_losses_are_of_logits_and_equal_torch_references() -> None:
    logits = torch.randn(50, 1) * 3
    labels = torch.randint(0, 2, (50,))
    both = torch.cat([torch.zeros_like(logits), logits], dim=1)
    expected = nn.functional.cross_entropy(both, labels)
    assert loss_of(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(predicted_class(logits), both.argmax(dim=1))


def test_networks_have_the_layers_that_their_recipe_says() -> None:
    config = MlpNetwork(hidden=(7, 4), activation="gelu", batch_norm=True, dropout=0.25)
    network = build_network(config, (1, 3, 2), (), 5)
    kinds = [type(layer).__name__ for layer in network]
    block = ["Linear", "BatchNorm1d", "GELU", "Dropout"]
    assert kinds == ["Flatten", *block, *block, "Linear"]
    assert network(torch.zeros(2, 1, 3, 2)).shape == (2, 5)
    binary = build_network(LinearNetwork(), (4,), (), 2)
    assert [type(layer).__name__ for layer in binary] == ["Flatten", "Linear"]
    assert binary(torch.zeros(2, 4)).shape == (2, 1)


@pytest.mark.parametrize(("init", "variance"), [("kaiming", 2 / 400), ("xavier", 2 / 700)])
def test_initial_weights_have_the_variance_of_their_paper(init: str, variance: float) -> None:
    torch.manual_seed(0)
    network = build_network(MlpNetwork(hidden=(300,), init=init), (400,), (), 5)
    assert network[1].weight.var().item() == pytest.approx(variance, rel=0.05)
    assert network[1].bias.abs().max().item() == 0


@given(successes=st.integers(0, 500), failures=st.integers(0, 500))
def test_wilson_intervals_hold_the_share_and_stay_in_0_1(successes: int, failures: int) -> None:
    if successes + failures == 0:
        return
    estimate = wilson_interval(successes, successes + failures)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_intervals_equal_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 by Wilson's score method.
    estimate = wilson_interval(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    mean = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean.value == 2.5
    assert mean.high - 2.5 == pytest.approx(1.959964 * math.sqrt(5 / 3) / 2)


def test_metrics_equal_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.metrics import confusion_matrix as reference

    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 200).astype(np.float32)
    labels = generator.integers(0, 4, 200)
    metrics = classification_metrics(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    assert metrics.accuracy.value == pytest.approx(accuracy_score(labels, predicted))
    doubles = probabilities.astype(np.float64)
    expected = log_loss(labels, doubles / doubles.sum(axis=1, keepdims=True), labels=range(4))
    assert metrics.log_loss.value == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(
        confusion_matrix(predicted, labels, 4), reference(labels, predicted)
    )


def test_a_validation_loss_that_is_no_number_stops_too() -> None:
    held = rows(100, seed=5)
    spoiled = Part(held.raw * np.float32(np.nan), held.labels)
    network = build_network(LinearNetwork(), (5,), (), 3)
    with pytest.raises(DataError, match=r"the loss became \d.*\(validation nan\) in epoch 1"):
        fit(
            network, nn.Identity(), batches(rows(100)), batches(spoiled), TrainConfig(epochs=2),
            lambda *_: None,
        )  # fmt: skip


def test_dropout_depends_on_the_recipes_seed_alone() -> None:
    states = []
    for drawn in (0, 5):
        torch.manual_seed(1)
        network = build_network(MlpNetwork(hidden=(16,), dropout=0.5), (5,), (), 3)
        torch.rand(drawn)
        fit(
            network,
            nn.Identity(),
            batches(rows(100)),
            batches(rows(50, seed=5)),
            TrainConfig(epochs=1),
            lambda *_: None,
        )
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
