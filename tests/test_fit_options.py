"""What each key of [train] does to the weights, against the same computed by hand."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from artifacts.configs import CnnNetwork, LinearNetwork, MlpNetwork
from artifacts.manifest import Epoch
from artifacts.networks import build_network
from tests.test_fit import CPU, batches, rows
from training.batches import Batches
from training.data import Part
from training.fit import Backbone, fit
from training.losses import class_weights, loss_of, predicted_class
from training.precision import compute_precision
from training.recipe import TrainConfig


class Watched(nn.Module):
    """A network that keeps its weights as they were before each training step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(copy.deepcopy(self.network.state_dict()))
        return self.network(x)

    def __deepcopy__(self, _: object) -> Watched:
        return Watched(copy.deepcopy(self.network))


def train(
    network: nn.Module, part: Part | None = None, held: Part | None = None, **settings: Any
) -> tuple[nn.Module, Any, list[Epoch]]:
    config = TrainConfig(**{"epochs": 4, "batch_size": 32, "warmup": 0, **settings})
    seen: list[Epoch] = []
    part = part or rows(128)
    held = held or rows(60, seed=5)
    result = fit(
        network,
        nn.Identity(),
        batches(part),
        batches(held),
        config,
        lambda record, _: seen.append(record),
    )
    return network, result, seen


def mlp(classes: int = 3, **settings: Any) -> nn.Module:
    torch.manual_seed(1)
    config = MlpNetwork(**{"hidden": (8,), "dropout": 0.0, **settings})
    return build_network(config, (5,), (), classes)


def test_ema_weights_are_the_average_that_its_formula_says() -> None:
    settings = {"epochs": 5, "keep": "last", "schedule": "constant"}
    watched, _, _ = train(Watched(mlp()), **settings)
    plain = train(mlp(), **settings)[0].state_dict()
    states = [*watched.seen, plain]
    average = {name: value.double() for name, value in states[0].items()}
    for step, state in enumerate(states[1:], start=1):
        decay = min(0.8, step / (step + 9))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value.double()
            else:
                average[name] = value
    found = train(mlp(), ema=0.8, **settings)[0].state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), average[name].double(), rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(found[name], plain[name]) for name in found)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_kept_weights_are_those_of_the_epoch_that_is_said(ema: float) -> None:
    settings: dict[str, Any] = {
        "epochs": 40, "batch_size": 16, "lr": 0.05, "schedule": "constant", "weight_decay": 0.0,
        "ema": ema,
    }  # fmt: skip
    part, held = rows(40), rows(200, seed=5)
    # With wrong labels, growing sure of itself costs.
    held.labels[:60] = (held.labels[:60] + 1) % 3

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return loss_of(
                network(torch.from_numpy(held.raw)), torch.from_numpy(held.labels)
            ).item()

    for monitor, best in (
        ("loss", lambda record: record.validation_loss),
        ("accuracy", lambda record: (-record.validation_accuracy, record.validation_loss)),
    ):
        network, result, seen = train(
            mlp(hidden=(64,)), part, held, patience=0, monitor=monitor, **settings
        )
        assert len(seen) == 40 and not result.stopped_early
        assert result.kept_epoch == min(seen, key=best).epoch
        assert result.kept_epoch < 40 or monitor == "accuracy"
        kept = seen[result.kept_epoch - 1].validation_loss
        assert loss(network) == pytest.approx(kept, rel=1e-5)
    network, result, seen = train(
        mlp(hidden=(64,)), part, held, patience=5, keep="last", **settings
    )
    assert result.stopped_early and result.kept_epoch == len(seen) < 40
    assert loss(network) == pytest.approx(seen[-1].validation_loss, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_is_torchs_and_of_one_logit_that_of_two_classes(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4), torch.randint(0, 4, (50,))
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(logits, labels, smoothing), expected)
    one = torch.randn(50, 1)
    both = torch.cat([torch.zeros_like(one), one], dim=1)
    expected = functional.cross_entropy(both, labels % 2, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(one, labels % 2, smoothing), expected)


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_losses_of_members_are_averaged(outputs: int, weighted: bool) -> None:
    torch.manual_seed(0)
    classes = max(2, outputs)
    logits, labels = torch.randn(30, 5, outputs), torch.randint(0, classes, (30,))
    weights = torch.rand(classes) if weighted else None
    each = [loss_of(logits[:, member], labels, 0.1, weights) for member in range(5)]
    torch.testing.assert_close(loss_of(logits, labels, 0.1, weights), torch.stack(each).mean())
    assert torch.equal(predicted_class(logits), predicted_class(logits.mean(dim=1)))


@pytest.mark.parametrize("outputs", [1, 3])
def test_balanced_classes_count_alike(outputs: int) -> None:
    torch.manual_seed(0)
    classes = max(2, outputs)
    labels = torch.tensor([0] * 40 + [1] * 8 + [classes - 1] * 2)
    weights = class_weights(labels, TrainConfig(class_weight="balanced"))
    assert weights is not None and class_weights(labels, TrainConfig()) is None
    counts = torch.bincount(labels)
    torch.testing.assert_close(weights * counts, torch.full((classes,), 50 / classes))
    logits = torch.randn(50, outputs)
    by_class = [loss_of(logits[labels == c], labels[labels == c]) for c in range(classes)]
    torch.testing.assert_close(loss_of(logits, labels, 0.0, weights), torch.stack(by_class).mean())
    both = logits if outputs > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)
    some = torch.rand(classes)
    expected = functional.cross_entropy(both, labels, weight=some)
    torch.testing.assert_close(loss_of(logits, labels, 0.0, some), expected)


def test_balance_finds_more_of_a_rare_class() -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(600) % 20 == 0).astype(np.int64)
    raw = (labels[:, None] + generator.normal(size=(600, 5))).astype(np.float32)
    part = Part(raw, labels)
    recall = []
    for choice in ("none", "balanced"):
        torch.manual_seed(0)
        network = build_network(LinearNetwork(), (5,), (), 2)
        train(network, part, part, class_weight=choice, epochs=15, lr=0.02)
        with torch.no_grad():
            predicted = predicted_class(network(torch.from_numpy(raw))).numpy()
        recall.append(predicted[labels == 1].mean())
    assert recall[1] > recall[0] + 0.2


def test_a_step_is_no_longer_than_the_clipped_gradient() -> None:
    watched, _, _ = train(
        Watched(mlp(batch_norm=False)), optimizer="sgd", momentum=0, lr=0.5, clip_norm=0.01,
        weight_decay=0, schedule="constant", keep="last",
    )  # fmt: skip
    for before, after in itertools.pairwise(watched.seen):
        moved = math.sqrt(sum((after[k] - before[k]).square().sum().item() for k in before))
        assert 0 < moved <= 0.5 * 0.01 * 1.001


def pretrained() -> tuple[nn.Module, frozenset[str]]:
    torch.manual_seed(0)
    network = build_network(CnnNetwork(channels=(4, 4), depth=1, dropout=0.0), (1, 4, 4), (), 3)
    head = frozenset(name for name in network.state_dict() if name.startswith("4."))
    assert len(head) == 2
    return network, head


def test_a_frozen_backbone_stays_bit_for_bit_and_then_learns() -> None:
    network, head = pretrained()
    generator = np.random.default_rng(0)
    part = Part(generator.normal(size=(64, 1, 4, 4)).astype(np.float32), np.arange(64) % 3)
    held = Batches(part, CPU)
    before = copy.deepcopy(network.state_dict())
    snapshots: list[dict[str, Tensor]] = []
    config = TrainConfig(
        epochs=4, batch_size=16, lr=0.01, warmup=0, keep="last", precision="float32"
    )

    def keep(_: Epoch, seconds: float) -> None:
        snapshots.append(copy.deepcopy(network.state_dict()))

    backbone = Backbone(head, freeze_epochs=2, lr=0.1)
    fit(network, nn.Identity(), held, held, config, keep, backbone)
    for snapshot in snapshots[:2]:
        for name, value in snapshot.items():
            assert torch.equal(value, before[name]) == (name not in head), name
    for name, value in snapshots[3].items():
        assert not torch.equal(value, snapshots[1][name]), name
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_backbone_learns_at_its_share_of_the_rate() -> None:
    network, head = pretrained()
    # One step of plain SGD from the same weights moves it a quarter as far.
    moved = []
    for share in (1.0, 0.25):
        network, head = pretrained()
        before = copy.deepcopy(network.state_dict())
        part = Part(np.random.default_rng(0).normal(size=(16, 1, 4, 4)).astype(np.float32),
                    np.arange(16) % 3)  # fmt: skip
        held = Batches(part, CPU)
        config = TrainConfig(
            epochs=1, batch_size=16, optimizer="sgd", lr=0.1, warmup=0, weight_decay=0,
            precision="float32",
        )  # fmt: skip
        backbone = Backbone(head, freeze_epochs=0, lr=share)
        fit(network, nn.Identity(), held, held, config, lambda *_: None, backbone)
        moved.append({k: v - before[k] for k, v in network.named_parameters()})
    for name, value in moved[0].items():
        expected = value if name in head else value / 4
        torch.testing.assert_close(moved[1][name], expected, rtol=1e-3, atol=1e-6)


def test_bfloat16_is_for_convolutions_and_ends_in_float32() -> None:
    auto, asked = TrainConfig(), TrainConfig(precision="bfloat16")
    assert compute_precision(mlp(), auto, CPU) == "float32"
    assert compute_precision(mlp(), asked, CPU) == "bfloat16"
    network, _ = pretrained()
    fast = torch.cpu._is_amx_tile_supported()
    assert compute_precision(network, auto, CPU) == ("bfloat16" if fast else "float32")
    part = Part(np.random.default_rng(0).normal(size=(32, 1, 4, 4)).astype(np.float32),
                np.arange(32) % 3)  # fmt: skip
    held = Batches(part, CPU)
    config = TrainConfig(epochs=1, batch_size=16, precision="bfloat16", ema=0.9)
    result = fit(network, nn.Identity(), held, held, config, lambda *_: None)
    assert {v.dtype for v in network.state_dict().values() if v.is_floating_point()} == {
        torch.float32
    }
    assert network(torch.zeros(2, 1, 4, 4)).dtype == torch.float32
    assert math.isfinite(result.history[0].train_loss)


def test_a_gradient_too_long_for_float16_at_the_end_of_an_epoch_is_left_out() -> None:
    part = rows(64)
    # 65,536 times the loss: beyond float16's largest number.
    wide = Part(part.raw * np.float32(1000), part.labels)
    _, result, _ = train(mlp(batch_norm=False), wide, batch_size=64, epochs=2, precision="float16")
    assert [record.gradient_norm for record in result.history] == [None, None]
