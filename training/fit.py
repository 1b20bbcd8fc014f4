"""The training loop.

The rows lie on the device as they are (uint8 or float64) and are indexed in shuffled batches;
the preprocessing that is exported is the preprocessing that trains.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from artifacts.errors import DataError
from training.data import Part
from training.recipe import TrainConfig

_EVAL_BATCH = 4096


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures; losses in nats, the training ones measured while training."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class Fit:
    """What a run found; the network then holds the weights of `best_epoch`."""

    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool


def fit(
    network: nn.Module,
    preprocess: nn.Module,
    train: Part,
    validation: Part,
    config: TrainConfig,
    device: torch.device,
    show: Callable[[Epoch], None],
) -> Fit:
    """Train `network` in place and leave it with the weights of its lowest validation loss.

    network: float32 [N, ...] -> logits [N, K], or [N, 1] for two classes; on `device`.
    preprocess: raw [N, ...] -> float32; on `device`. show: called after each epoch.
    The order of rows and the dropout masks depend on config.seed alone.
    Raises DataError when the loss is no longer finite.
    """
    raw = torch.from_numpy(train.raw).to(device)
    labels = torch.from_numpy(train.labels).to(device)
    held_raw = torch.from_numpy(validation.raw).to(device)
    held_labels = torch.from_numpy(validation.labels).to(device)
    torch.manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)
    optimizer = make_optimizer(network, config)
    # A lone last row has no batch statistics; the shuffle gives it its turn in another epoch.
    starts = [start for start in range(0, len(train), config.batch_size) if len(train) - start > 1]
    if not starts:
        raise DataError(f"training needs at least 2 rows, found {len(train)}")
    step, history = 0, []
    best_loss, best_epoch, best_state = math.inf, 0, copy.deepcopy(network.state_dict())

    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        network.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        seen, lr = 0, 0.0
        shuffled = torch.randperm(len(train), generator=order).to(device)
        for start in starts:
            rows = shuffled[start : start + config.batch_size]
            lr = learning_rate(step, len(starts), config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            logits = network(preprocess(raw[rows]))
            loss = loss_of(logits, labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
            correct += (predicted_class(logits.detach()) == labels[rows]).sum()
            seen += len(rows)
            step += 1

        train_loss = loss_sum.item() / seen
        validation_loss, validation_accuracy = evaluate(network, preprocess, held_raw, held_labels)
        if not math.isfinite(train_loss) or not math.isfinite(validation_loss):
            raise DataError(
                f"the loss became {train_loss:.4g} (validation {validation_loss:.4g}) in epoch "
                f"{epoch} with learning rate {lr:.3g}: try a lower train.lr (such as "
                f"{config.lr / 10:.1g}), more train.warmup, or model.batch_norm=true"
            )
        record = Epoch(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=correct.item() / seen,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            lr=lr,
            seconds=time.perf_counter() - began,
        )
        history.append(record)
        show(record)
        if validation_loss < best_loss:
            best_loss, best_epoch = validation_loss, epoch
            best_state = copy.deepcopy(network.state_dict())
        elif epoch - best_epoch >= config.patience:
            break

    network.load_state_dict(best_state)
    network.eval()
    return Fit(tuple(history), best_epoch, stopped_early=len(history) < config.epochs)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss in nats: BCE with logits for one logit, cross-entropy for one a class."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return functional.cross_entropy(logits, labels)


def predicted_class(logits: Tensor) -> Tensor:
    """The most probable class, int64 [N]."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.int64)
    return logits.argmax(dim=1)


@torch.no_grad()
def evaluate(
    network: nn.Module, preprocess: nn.Module, raw: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Loss in nats and accuracy, in eval mode."""
    network.eval()
    loss_sum, correct = 0.0, 0
    for start in range(0, len(labels), _EVAL_BATCH):
        rows = slice(start, start + _EVAL_BATCH)
        logits = network(preprocess(raw[rows]))
        loss_sum += loss_of(logits, labels[rows]).item() * len(logits)
        correct += int((predicted_class(logits) == labels[rows]).sum().item())
    return loss_sum / len(labels), correct / len(labels)


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The rate of one step: linear warm-up, then constant or half a cosine down to zero.

    Loshchilov and Hutter 2017 (without restarts); the warm-up as in Goyal et al. 2017.
    """
    warmup = round(config.warmup * steps_per_epoch)
    if step < warmup:
        return config.lr * ((step + 1) / warmup)
    if config.schedule == "constant":
        return config.lr
    total = config.epochs * steps_per_epoch
    progress = (step - warmup) / max(1, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names; weight decay on matrices, not on norms and biases."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.ndim <= 1],
            "weight_decay": 0.0,
        },
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=True)


def probabilities_of(
    model: nn.Module, raw: np.ndarray, batch_size: int = _EVAL_BATCH
) -> np.ndarray:
    """The deployed model's probabilities, float32 [N, K], computed on the model's device."""
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(raw), batch_size):
            batch = torch.from_numpy(raw[start : start + batch_size]).to(device)
            parts.append(model(batch)[1].cpu().numpy())
    return np.concatenate(parts)
