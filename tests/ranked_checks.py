"""What two undisturbed processes show: everything beside the same in a single one."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from artifacts.configs import CnnNetwork, LinearNetwork, MlpNetwork
from artifacts.networks import build_network
from training.batch_norm import restore_batch_norm, synchronise_batch_norm
from training.batches import Batches
from training.data import Part
from training.evaluation import evaluate
from training.fit import Backbone, Fit, fit
from training.interrupts import Interrupted, catch_interrupts
from training.ranks import ALONE, Ranks, join_ranks
from training.recipe import TrainConfig

CPU = torch.device("cpu")
SGD: dict[str, Any] = {
    "epochs": 2, "batch_size": 64, "optimizer": "sgd", "lr": 0.1, "warmup": 0, "patience": 0,
}  # fmt: skip
# No batch norm: its statistics would be of each piece.
PLAIN = MlpNetwork(hidden=(16,), dropout=0, batch_norm=False)
NORMED = MlpNetwork(hidden=(16, 8), dropout=0)
# What may differ with the number of processes, in the network, in its training, or beside.
SETTINGS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "batch norm": (NORMED, {}, {}),
    "accumulate": (PLAIN, {"accumulate": 2}, {}),
    "class weights": (PLAIN, {"class_weight": "balanced", "label_smoothing": 0.1}, {}),
    "binary": (NORMED, {"class_weight": "balanced"}, {"classes": 2}),
    "clipped, averaged": (NORMED, {"clip_norm": 0.1, "ema": 0.9}, {}),
    "adamw": (PLAIN, {"optimizer": "adamw", "lr": 1e-3}, {}),
    "frozen at first": (
        NORMED, {},
        {"backbone": Backbone(head=frozenset({"7.weight", "7.bias"}), freeze_epochs=1, lr=0.5)},
    ),
}  # fmt: skip


class Rows(nn.Module):
    """What a network was trained on: each row's number, its last column, left out of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[int]] = []

    def forward(self, raw: Tensor) -> Tensor:
        numbers = raw[:, -1].long().tolist()
        if raw.numel() and min(numbers) >= 0:
            self.steps.append(numbers)
        return raw[:, :-1]


def part(count: int, classes: int = 3, seed: int = 0, first: int = 0) -> Part:
    """Clusters, the first class the most frequent; the last column numbers the rows."""
    generator = np.random.default_rng(seed)
    labels = np.minimum(generator.geometric(0.5, count) - 1, classes - 1)
    centers = np.random.default_rng(99).normal(0, 1, (classes, 5))
    raw = centers[labels] + generator.normal(0, 1, (count, 5))
    numbers = first + np.arange(count) * (-1 if first < 0 else 1)
    return Part(np.column_stack([raw, numbers]).astype(np.float32), labels.astype(np.int64))


def fitted(
    ranks: Ranks, model: Any, config: TrainConfig, *, count: int = 309, classes: int = 3,
    backbone: Backbone | None = None, **more: Any,
) -> tuple[nn.Module, Fit, list[list[int]]]:  # fmt: skip
    """A network trained by `ranks` on so many rows, and the rows of each step's pieces."""
    torch.manual_seed(1)
    network, rows = build_network(model, (5,), (), classes), Rows()
    result = fit(
        network, rows, Batches(part(count, classes), CPU),
        Batches(part(101, classes, seed=5, first=-1), CPU), config,
        more.pop("show", lambda *_: None), backbone, ranks=ranks, **more,
    )  # fmt: skip
    return network, result, rows.steps


def digest(network: nn.Module) -> str:
    """Of every bit of its weights and statistics."""
    content = hashlib.sha256()
    for name, value in network.state_dict().items():
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    theirs = other.state_dict()
    return max(
        (value.double() - theirs[name].double()).abs().max().item()
        for name, value in one.state_dict().items()
    )


def compared(ranks: Ranks, model: Any, config: TrainConfig, **more: Any) -> dict[str, Any]:
    """All processes together beside a single one, which takes each step's rows at once."""
    together, ours, _ = fitted(ranks, model, config, **more)
    alone, theirs, _ = fitted(ALONE, model, config.model_copy(update={"accumulate": 1}), **more)
    return {
        "losses": [
            [
                (a.train_loss, b.train_loss),
                (a.validation_loss, b.validation_loss),
                (a.train_accuracy, b.train_accuracy),
                (a.validation_accuracy, b.validation_accuracy),
            ]
            for a, b in zip(ours.history, theirs.history, strict=True)
        ],
        "weights": largest_difference(together, alone),
        "digest": digest(together),
    }


def equal_global_batch(ranks: Ranks) -> dict[str, Any]:
    """Each of SETTINGS, with all processes and with one."""
    found = {}
    for name, (model, changes, more) in SETTINGS.items():
        config = TrainConfig.model_validate(SGD | changes)
        found[name] = compared(ranks, model, config, **more)
    return found


def batch_norm(ranks: Ranks) -> dict[str, float]:
    """Largest differences from torch's own over all rows; one process has 5 of them, one 3."""
    found = {"outputs": 0.0, "gradients": 0.0, "statistics": 0.0}
    for kind, shape in ((nn.BatchNorm1d, (8, 4)), (nn.BatchNorm2d, (8, 4, 3, 2))):
        for momentum in (0.1, None):
            torch.manual_seed(0)
            whole, share = torch.randn(shape) * 3 + 5, slice(0, 5) if ranks.first else slice(5, 8)
            wanted = torch.randn(shape)
            theirs = kind(4, momentum=momentum)
            ours = copy.deepcopy(theirs)
            network = nn.Sequential(ours)
            synchronise_batch_norm(network, ranks)
            for _ in range(2):
                ours.zero_grad()
                theirs.zero_grad()
                x, mine = whole.clone().requires_grad_(), whole[share].clone().requires_grad_()
                expected = theirs(x)
                (expected * wanted).sum().backward()
                output = network(mine)
                (output * wanted[share]).sum().backward()
                assert ours.weight.grad is not None and ours.bias.grad is not None
                affine = ranks.sum(torch.stack([ours.weight.grad, ours.bias.grad]))
                note(found, "outputs", output, expected[share])
                note(found, "gradients", mine.grad, x.grad[share])
                note(found, "gradients", affine[0], theirs.weight.grad)
                note(found, "gradients", affine[1], theirs.bias.grad)
            note(found, "statistics", ours.running_mean, theirs.running_mean)
            note(found, "statistics", ours.running_var, theirs.running_var)
            note(found, "statistics", ours.num_batches_tracked, theirs.num_batches_tracked)
            restore_batch_norm(network)
            note(found, "outputs", network(whole), theirs(whole))
            network.eval()
            theirs.eval()
            note(found, "outputs", network(whole), theirs(whole))
    return found


def note(found: dict[str, float], what: str, ours: Any, theirs: Any) -> None:
    found[what] = max(found[what], (ours - theirs).abs().max().item())


def evaluated(ranks: Ranks) -> list[Any]:
    """Of 1, 2 and 101 rows (loss, accuracy) by all processes, and by one."""
    torch.manual_seed(0)
    network, rows = build_network(LinearNetwork(), (5,), (), 3), Rows()
    found = []
    for count in (1, 2, 101):
        batches = Batches(part(count), CPU)
        batches.answered_at_once = 7
        found.append((evaluate(network, rows, batches, ranks), evaluate(network, rows, batches)))
    return found


def shards(ranks: Ranks) -> dict[str, Any]:
    """The rows of each step's pieces here, and of a single process's steps."""
    found: dict[str, Any] = {}
    for accumulate in (1, 3):
        # 5 whole steps and a last one of 19 rows, or of 15; 12 are the fewest that three pieces
        # of two processes take.
        for count in (339, 335):
            config = TrainConfig(**{**SGD, "epochs": 1}, accumulate=accumulate)
            found[f"{accumulate}/{count}"] = [
                fitted(ranks, PLAIN, config, count=count)[2],
                fitted(ALONE, PLAIN, config.model_copy(update={"accumulate": 1}), count=count)[2],
            ]
    return found


def early_stop(ranks: Ranks) -> dict[str, Any]:
    config = TrainConfig(**{**SGD, "epochs": 200, "patience": 3}, keep="best")
    model = MlpNetwork(hidden=(32,), dropout=0.5)
    network, result, _ = fitted(ranks, model, config, count=70)
    return {
        "stopped": result.stopped_early, "epochs": len(result.history),
        "kept": result.kept_epoch, "digest": digest(network),
    }  # fmt: skip


def pictures(ranks: Ranks) -> str:
    """A convolutional network in the layout that runs train it in."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 100)
    raw = (generator.integers(0, 60, (100, 1, 8, 8)) + labels[:, None, None, None] * 60).astype(
        np.float32
    )
    torch.manual_seed(0)
    network = build_network(CnnNetwork(), (1, 8, 8), (), 3)
    network.to(memory_format=torch.channels_last)
    batches = Batches(Part(raw / 255, labels), CPU)
    fit(network, nn.Identity(), batches, batches, TrainConfig(**SGD), lambda *_: None, ranks=ranks)
    return digest(network)


def refusals(ranks: Ranks) -> dict[str, str]:
    """What the user is told."""
    found = {}
    cases: dict[str, Callable[[], object]] = {
        "data": lambda: ranks.same({"the data's fingerprint": "ab" if ranks.first else "cd"}),
        "batch size": lambda: fitted(
            ranks, PLAIN, TrainConfig(**{**SGD, "batch_size": 7}, accumulate=2)
        ),
        "rows": lambda: fitted(ranks, PLAIN, TrainConfig(**SGD, accumulate=8), count=31),
    }
    ranks.same({"nothing": 1})
    for name, case in cases.items():
        try:
            case()
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def signalled(ranks: Ranks) -> list[Any]:
    """The second process alone gets SIGTERM; what both then say, and where they are."""
    epochs = []

    def show(record: Any, _: float) -> None:
        epochs.append(record.epoch)
        if record.epoch == 3 and not ranks.first:
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(**{**SGD, "epochs": 100_000})
    try:
        with catch_interrupts() as interrupts:
            fitted(ranks, PLAIN, config, show=show, interrupts=interrupts)
    except Interrupted as interrupted:
        return [str(interrupted), interrupted.exit_status, epochs[-1]]
    return []


def checks(folder: Path) -> None:
    """Everything that two undisturbed processes can show, by one of them."""
    with warnings.catch_warnings(record=True) as noise, join_ranks("cpu") as ranks:
        warnings.simplefilter("always")
        found = {
            "batch norm": batch_norm(ranks),
            "equal global batch": equal_global_batch(ranks),
            "evaluated": evaluated(ranks),
            "shards": shards(ranks),
            "early stop": early_stop(ranks),
            "pictures": pictures(ranks),
            "refusals": refusals(ranks),
            "signalled": signalled(ranks),
        }
        found["warnings"] = [str(warning.message) for warning in noise]
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))
