"""Networks trained together end as each would have alone, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from artifacts.configs import LinearNetwork, MlpNetwork
from artifacts.errors import DataError
from artifacts.manifest import Epoch
from artifacts.networks import build_network
from training.batches import Batches
from training.data import Part
from training.evaluation import evaluate
from training.fit import Fit, fit
from training.recipe import Recipe, TrainConfig, load_recipe
from training.tuning.stacked import fit_stacked, pays, stack_key
from training.tuning.stacked_network import DropoutMasks, StackedNetwork

# What float32 leaves between one matrix product and a batch of them, after 20 to 40 steps.
RTOL, ATOL = 2e-4, 2e-6
# Each of a kind of its own; the third, with patience, and the second leave before the others.
TRIALS: list[dict[str, Any]] = [
    {"lr": 1e-3, "weight_decay": 0.0},
    {"lr": 2e-2, "weight_decay": 0.5, "epochs": 3, "label_smoothing": 0.1},
    {"lr": 4e-2, "epochs": 9, "patience": 1, "warmup": 2.5, "schedule": "constant"},
    {"schedule": "one-cycle", "epochs": 5, "warmup": 1.5},
    {"schedule": "plateau", "plateau_patience": 0, "epochs": 6, "patience": 0, "lr": 3e-2},
]


def rows(count: int, classes: int, seed: int, device: str = "cpu") -> Batches:
    """Clusters that overlap: float32 [count, 8]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centers = np.random.default_rng(9).normal(0, 1, (classes, 8))
    raw = (centers[labels] + generator.normal(0, 1, (count, 8))).astype(np.float32)
    return Batches(Part(raw, labels), torch.device(device))


def pictures(count: int, seed: int) -> Batches:
    """uint8 [count, 1, 4, 4], a bright row of each for its class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    raw = generator.integers(0, 80, (count, 1, 4, 4), dtype=np.uint8)
    raw[np.arange(count), 0, labels] += 100
    return Batches(Part(raw, labels), torch.device("cpu"))


class Scaled(nn.Module):
    """A preprocessing of pictures."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.float() / 128 - 0.5


def configs(trials: Sequence[dict[str, Any]], **settings: Any) -> list[TrainConfig]:
    usual = {"epochs": 4, "batch_size": 32, "lr": 1e-2, "warmup": 0.5}
    return [TrainConfig(**{**usual, **settings, **trial}) for trial in trials]


def built(
    count: int,
    classes: int,
    dropout: Sequence[float] = (),
    shape: tuple[int, ...] = (8,),
    **model: Any,
) -> list[nn.Module]:
    networks = []
    for number in range(count):
        torch.manual_seed(0)
        rate = dropout[number] if dropout else 0.0
        config = MlpNetwork(**{"hidden": (16, 12), "batch_norm": False, "dropout": rate, **model})
        networks.append(build_network(config, shape, (), classes))
    return networks


def alone(
    networks: list[nn.Module], train: Batches, held: Batches, of: list[TrainConfig],
    preprocess: nn.Module | None = None,
) -> list[Fit]:  # fmt: skip
    return [
        fit(network, preprocess or nn.Identity(), train, held, config, lambda *_: None)
        for network, config in zip(networks, of, strict=True)
    ]


def together(
    networks: list[nn.Module], train: Batches, held: Batches, of: list[TrainConfig],
    show: Callable[[int, Epoch, float], bool] = lambda *_: True,
    preprocess: nn.Module | None = None,
) -> list[Any]:  # fmt: skip
    return fit_stacked(networks, preprocess or nn.Identity(), train, held, of, show)


def assert_same_weights(
    expected: nn.Module, found: nn.Module, *, but: Sequence[str] = (), rtol: float = RTOL
) -> None:
    theirs, ours = expected.state_dict(), found.state_dict()
    assert theirs.keys() == ours.keys()
    for name in theirs.keys() - set(but):
        torch.testing.assert_close(
            ours[name],
            theirs[name],
            rtol=rtol,
            atol=ATOL,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert not found.training


def assert_same_history(expected: Fit, found: Any, *, but: Sequence[str] = ()) -> None:
    assert isinstance(found, Fit)
    assert (found.kept_epoch, found.stopped_early) == (expected.kept_epoch, expected.stopped_early)
    assert len(found.history) == len(expected.history)
    for theirs, ours in zip(expected.history, found.history, strict=True):
        want = {key: value for key, value in theirs.model_dump().items() if key not in but}
        have = {key: value for key, value in ours.model_dump().items() if key not in but}
        assert have == pytest.approx(want, rel=RTOL, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw"},
        {"optimizer": "adam", "beta2": 0.98},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
        {"clip_norm": 0.3},
        {"class_weight": "balanced"},
        {"augment": {"mixup": 0.4}, "class_weight": "balanced"},
        {"ema": 0.9},
        {"keep": "last", "monitor": "accuracy", "ema": 0.8},
        {"monitor": "accuracy", "seed": 3},
    ],
    ids=str,
)
def test_each_network_ends_as_it_would_have_alone(settings: dict[str, Any], classes: int) -> None:
    train, held = rows(131, classes, 0), rows(70, classes, 1)
    of = configs(TRIALS, **settings)
    theirs, ours = built(len(of), classes), built(len(of), classes)
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    for number in range(len(of)):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "tanh"])
def test_batch_norm_is_that_of_each_network_alone(activation: str) -> None:
    """Statistics too, and their moving average; one lone row at the end of 129 is left out."""
    train, held = rows(129, 3, 0), rows(70, 3, 1)
    of = configs(TRIALS, optimizer="sgd", ema=0.9)
    theirs, ours = (built(len(of), 3, batch_norm=True, activation=activation) for _ in range(2))
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    for number in range(len(of)):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number])


def test_adam_with_batch_norm_learns_the_same_function() -> None:
    """The biases before a norm have no gradient but rounding, of which Adam makes whole steps; two
    runs of `fit` whose first weights differ by 1e-7 differ in them, and in what takes the means of
    them, as much.
    """
    train, held = rows(131, 3, 0), rows(70, 3, 1)
    of = configs([trial for trial in TRIALS if "patience" not in trial], patience=0, keep="last")
    theirs, ours = (built(len(of), 3, batch_norm=True) for _ in range(2))
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    norms = [name for name in theirs[0].state_dict() if name.endswith("running_mean")]
    before = [f"{int(name.split('.')[0]) - 1}.bias" for name in norms]
    validation = ["validation_loss", "validation_accuracy"]
    for number in range(len(of)):
        assert_same_history(expected[number], found[number], but=validation)
        assert_same_weights(theirs[number], ours[number], but=[*norms, *before], rtol=1e-2)


def test_pictures_are_changed_as_they_are_alone() -> None:
    train, held = pictures(110, 0), pictures(60, 1)
    augment = {"flip": True, "crop": 1, "cutout": 1, "mixup": 0.3, "cutmix": 0.5}
    of = configs(TRIALS[:3], augment=augment)
    theirs, ours = (built(len(of), 4, shape=(1, 4, 4)) for _ in range(2))
    expected = alone(theirs, train, held, of, Scaled())
    found = together(ours, train, held, of, preprocess=Scaled())
    for number in range(len(of)):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number])


def test_each_stops_for_want_of_patience_and_keeps_its_own_best_epoch() -> None:
    train, held = rows(60, 3, 0), rows(40, 3, 1)
    usual = {"epochs": 12, "schedule": "constant"}
    of = configs([{"lr": 0.1, "patience": 2}, {"lr": 1e-3, "patience": 2}, {"lr": 0.05}], **usual)
    theirs, ours = built(3, 3), built(3, 3)
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    assert [fitted.stopped_early for fitted in expected] == [True, False, False]
    assert len({fitted.kept_epoch for fitted in expected}) == 3
    for number in range(3):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number])


def test_logistic_regression_is_trained_together_too() -> None:
    train, held = rows(100, 3, 0), rows(50, 3, 1)
    of = configs(TRIALS)
    theirs, ours = ([build_network(LinearNetwork(), (8,), (), 3) for _ in of] for _ in range(2))
    for one, other in zip(theirs, ours, strict=True):
        other.load_state_dict(one.state_dict())
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    for number in range(len(of)):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number])


def test_a_pruned_network_leaves_and_the_others_do_not_notice() -> None:
    train, held = rows(131, 3, 0), rows(70, 3, 1)
    of = configs([{"lr": 1e-3}, {"lr": 2e-2}, {"lr": 5e-3}])
    dropout = (0.3, 0.1, 0.5)
    undisturbed, disturbed = (built(3, 3, dropout) for _ in range(2))
    expected = together(undisturbed, train, held, of)
    shown: list[tuple[int, int]] = []

    def show(index: int, record: Epoch, seconds: float) -> bool:
        assert seconds > 0
        shown.append((index, record.epoch))
        return (index, record.epoch) != (1, 2)

    found = together(disturbed, train, held, of, show)
    assert found[1] is None
    assert shown == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (0, 3), (2, 3), (0, 4), (2, 4)]
    for number in (0, 2):
        assert_same_history(expected[number], found[number])
        assert_same_weights(undisturbed[number], disturbed[number], rtol=1e-5)
    assert not disturbed[1].training


def test_a_diverging_network_is_an_error_and_the_others_do_not_notice() -> None:
    train, held = rows(131, 3, 0), rows(70, 3, 1)
    of = configs([{"lr": 1e-2}, {"lr": 1e6, "schedule": "constant"}, {"lr": 2e-2}], optimizer="sgd")
    theirs, ours = built(2, 3), built(3, 3)
    expected = together(theirs, train, held, [of[0], of[2]])
    indices: list[int] = []
    found = together(ours, train, held, of, lambda index, *_: indices.append(index) is None)
    assert isinstance(found[1], DataError)
    assert "diverged: the loss became" in str(found[1])
    assert "learning rate 1e+06" in str(found[1])
    assert "train.lr" in str(found[1])
    assert 1 not in indices
    for number, place in enumerate((0, 2)):
        assert_same_history(expected[number], found[place])
        assert_same_weights(theirs[number], ours[place], rtol=1e-5)


def test_each_network_drops_at_its_own_rate() -> None:
    rates = (0.0, 0.2, 0.7)
    networks = built(3, 3, rates)
    draw = DropoutMasks(networks, 40, 5, torch.device("cpu")).draw(2000)
    assert draw is not None
    assert draw.shape == (3, 2000, 40)
    for rate, mask in zip(rates, draw, strict=True):
        kept = mask > 0
        assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.01)
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - rate)))
        # Each unit by itself, in every row anew.
        assert kept.float().mean(dim=0).sub(1 - rate).abs().max() < 0.06
        assert kept.float().mean(dim=1).sub(1 - rate).abs().max() < 0.4
    assert DropoutMasks(built(2, 3), 40, 5, torch.device("cpu")).draw(10) is None


def test_networks_of_one_rate_drop_different_units() -> None:
    draw = DropoutMasks(built(2, 3, (0.5, 0.5)), 40, 5, torch.device("cpu")).draw(100)
    assert draw is not None
    assert (draw[0] == draw[1]).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_masks_do_not_depend_on_who_is_left() -> None:
    masks, other = (
        DropoutMasks(built(4, 3, (0.1, 0.2, 0.3, 0.4)), 6, 5, torch.device("cpu")) for _ in range(2)
    )
    for left, rows_left in (([0, 1, 2, 3], None), ([1, 2, 3], [1, 2, 3]), ([2], [1])):
        if rows_left is not None:
            masks.select(torch.tensor(rows_left))
        whole, part = other.draw(9), masks.draw(9)
        assert whole is not None
        assert part is not None
        assert torch.equal(part, whole[left])


def test_masks_multiply_the_units_of_every_hidden_layer() -> None:
    networks = built(2, 3)
    networks[1].load_state_dict({k: 2 * v for k, v in networks[1].state_dict().items()})
    stack = StackedNetwork(networks, torch.device("cpu"))
    inputs, masks = torch.randn(5, 8), torch.rand(2, 5, stack.hidden)
    found = stack.logits(inputs, masks)
    for network, mask, ours in zip(networks, masks, found, strict=True):
        first, second, head = (module for module in network if isinstance(module, nn.Linear))
        hidden = first(inputs).relu() * mask[:, :16]
        expected = head(second(hidden).relu() * mask[:, 16:])
        torch.testing.assert_close(ours, expected)


def test_a_seed_decides_the_dropout_and_at_rate_0_there_is_none() -> None:
    train, held = rows(131, 3, 0), rows(70, 3, 1)
    of = configs([{}, {}], optimizer="sgd")
    plain = built(1, 3)
    alone(plain, train, held, of[:1])
    first, second, other = (built(2, 3, (0.0, 0.5)) for _ in range(3))
    for networks in (first, second):
        together(networks, train, held, of)
    together(other, train, held, configs([{}, {}], optimizer="sgd", seed=1))
    for ours, again in zip(first, second, strict=True):
        assert all(map(torch.equal, ours.state_dict().values(), again.state_dict().values()))
    for name, dropped in zip(plain[0].state_dict(), first[1].state_dict().values(), strict=True):
        want = plain[0].state_dict()[name]
        torch.testing.assert_close(first[0].state_dict()[name], want, rtol=RTOL, atol=ATOL)
        assert not torch.allclose(dropped, want, rtol=1e-2)
    assert not torch.equal(first[1][1].weight, other[1][1].weight)


def test_examine_sees_the_network_as_it_was_measured() -> None:
    train, held = rows(131, 3, 0), rows(70, 3, 1)
    of = configs([{"lr": 0.3, "schedule": "constant", "epochs": 6}, {"epochs": 2}], ema=0.5)
    losses: list[tuple[int, float]] = []
    shown: list[tuple[int, float]] = []

    def show(index: int, record: Epoch, _seconds: float) -> bool:
        shown.append((index, record.validation_loss))
        assert len(losses) == len(shown)
        return True

    def examine(index: int, network: nn.Module) -> None:
        assert not network.training
        losses.append((index, evaluate(network, nn.Identity(), held)[0]))

    networks = built(2, 3, (0.2, 0.2), batch_norm=True)
    found = fit_stacked(networks, nn.Identity(), train, held, of, show, examine=examine)
    assert isinstance(found[0], Fit)
    assert found[0].kept_epoch < 6
    assert [index for index, _ in losses] == [0, 1, 0, 1, 0, 0, 0, 0]
    for seen, measured in zip(losses, shown, strict=True):
        assert seen == (measured[0], pytest.approx(measured[1], rel=1e-5))


def digits(*overrides: str) -> Recipe:
    return load_recipe("digits", overrides)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=0.1", "train.weight_decay=0.3", "train.epochs=3", "train.warmup=0",
        "train.patience=3", "train.label_smoothing=0.1", "train.schedule=one-cycle",
        "model.dropout=0", "train.precision=float32", "name=other", "export.golden=synthetic",
    ],
)  # fmt: skip
def test_these_may_differ_within_a_stack(override: str) -> None:
    assert stack_key(digits(override)) == stack_key(digits()) is not None


@pytest.mark.parametrize(
    "override",
    [
        "model.kind=linear", "model.hidden=[256]", "model.batch_norm=false", "model.init=xavier",
        "model.activation=tanh", "data.seed=1", "data.val_fraction=0.2", "train.batch_size=32",
        "train.optimizer=sgd", "train.momentum=0.5", "train.nesterov=true", "train.beta2=0.9",
        "train.clip_norm=1", "train.seed=1", "train.ema=0.9", "train.class_weight=balanced",
        "train.monitor=accuracy", "train.keep=last", "train.augment.mixup=0.1",
        "train.augment.crop=1", "train.device=cuda", "train.threads=2",
    ],
)  # fmt: skip
def test_these_need_a_stack_of_their_own(override: str) -> None:
    key = stack_key(digits(override))
    assert key is not None
    assert key != stack_key(digits())


def test_at_once_on_a_cpu_only_where_it_was_measured_to_pay() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pays(digits("model.hidden=[128,64]"), 1000, 64, cpu) == 8
    assert pays(digits("model.hidden=[512,256]"), 1000, 64, cpu) == 1
    assert pays(digits("model.hidden=[256,256]", "train.batch_size=auto"), 1000, 64, cpu) == 8
    assert pays(digits("model.hidden=[256,256]", "train.batch_size=512"), 1000, 64, cpu) == 1
    assert pays(digits("model.hidden=[512,256]"), 1000, 64, cuda) == 128
    assert pays(digits("model.hidden=[2048,2048]"), 1000, 64, cuda) == 4
    assert pays(digits("model.kind=linear"), 1000, 64, cpu) == 8
    assert pays(digits("model.hidden=[256]"), 1000, 784, cpu) == 8
    assert pays(digits("model.hidden=[512]"), 1000, 784, cpu) == 1


@pytest.mark.parametrize(
    "override",
    [
        "model.kind=cnn", "model.kind=table", "train.optimizer=muon", "train.compile=true",
        "train.precision=bfloat16", "train.accumulate=2", 'train.rates={"1.*" = 0.1}',
    ],
)  # fmt: skip
def test_these_are_trained_alone(override: str) -> None:
    assert stack_key(digits(override)) is None
    assert pays(digits(override), 1000, 64, torch.device("cuda")) == 1


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="training needs at least 2 rows, found 1"):
        together(built(2, 3), rows(1, 3, 0), rows(9, 3, 1), configs([{}, {}]))


@pytest.mark.gpu
def test_on_cuda_each_network_ends_as_it_would_have_alone() -> None:
    train, held = rows(131, 3, 0, "cuda"), rows(70, 3, 1, "cuda")
    of = configs(TRIALS, optimizer="sgd", ema=0.9, clip_norm=1.0)
    theirs, ours = (
        [network.cuda() for network in built(len(of), 3, batch_norm=True)] for _ in range(2)
    )
    expected, found = alone(theirs, train, held, of), together(ours, train, held, of)
    for number in range(len(of)):
        assert_same_history(expected[number], found[number])
        assert_same_weights(theirs[number], ours[number], rtol=1e-3)
