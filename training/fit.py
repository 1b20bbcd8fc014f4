"""The training loop.

Rows are indexed in shuffled batches, changed at random where the recipe says so, and go through
the very preprocessing that is exported.
"""

from __future__ import annotations

import contextlib
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
from training.augment import augment_pixels, cut_out, mix
from training.batches import Batches
from training.optim import learning_rate, make_optimizer
from training.recipe import AugmentConfig, TrainConfig


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
    """What a run found; the network then holds the weights of `kept_epoch`."""

    history: tuple[Epoch, ...]
    kept_epoch: int
    stopped_early: bool


@dataclass(frozen=True)
class Backbone:
    """The part of a network that came with weights of its own.

    head: the names of the network's other parameters, which train from the start.
    freeze_epochs: how long the backbone stays as it is. lr: its rate, as a share of the head's.
    """

    head: frozenset[str]
    freeze_epochs: int
    lr: float


def fit(
    network: nn.Module,
    preprocess: nn.Module,
    train: Batches,
    validation: Batches,
    config: TrainConfig,
    show: Callable[[Epoch], None],
    backbone: Backbone | None = None,
) -> Fit:
    """Train `network` in place and leave it, in eval mode, with the weights that config.keep names.

    network: float32 [N, ...] -> logits [N, K], [N, 1] for two classes, or while training
    [N, members, ...] of either; on the batches' device. preprocess: raw [N, ...] -> float32; on
    the same device. show: called after each epoch.
    The order of rows, the augmentation and the dropout masks depend on config.seed alone.
    Raises DataError when the loss is no longer finite.
    """
    assert config.epochs != "auto" and config.batch_size != "auto"
    device = train.device
    torch.manual_seed(config.seed)
    order = torch.Generator().manual_seed(config.seed)
    if backbone is None:
        optimizer = make_optimizer(network, config)
    else:
        optimizer = make_optimizer(network, config, backbone.head, backbone.lr)
        _set_frozen(network, backbone, frozen=backbone.freeze_epochs > 0)
    weights = class_weights(train.labels, config)
    # A lone last row has no batch statistics; the shuffle gives it its turn in another epoch.
    used = train.rows - (train.rows % config.batch_size == 1)
    if used < 2:
        raise DataError(f"training needs at least 2 rows, found {train.rows}")
    steps = math.ceil(used / config.batch_size)
    cast = _autocast(network, config, device)
    averaged = copy.deepcopy(network) if config.ema else network
    step, history = 0, []
    best: tuple[float, float] = (math.inf, math.inf)
    kept_epoch, kept = 0, copy.deepcopy(averaged.state_dict())

    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        network.train()
        if backbone:
            frozen = epoch <= backbone.freeze_epochs
            if not frozen and epoch == backbone.freeze_epochs + 1:
                _set_frozen(network, backbone, frozen=False)
            if frozen:
                # Batch norm that is not trained keeps its statistics too.
                _frozen_to_eval(network)
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        lr = 0.0
        shuffled = torch.randperm(train.rows, generator=order)[:used]
        for raw, labels in train.in_order(shuffled, config.batch_size):
            lr = learning_rate(step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            inputs, partner, share = _inputs(raw, preprocess, config.augment)
            with cast():
                logits = network(inputs)
            loss = loss_of(logits, labels, config.label_smoothing, weights)
            if partner is not None:
                other = loss_of(logits, labels[partner], config.label_smoothing, weights)
                loss = share * loss + (1 - share) * other
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            optimizer.step()
            step += 1
            if config.ema:
                _move_towards(averaged, network, min(config.ema, step / (step + 9)))
            loss_sum += loss.detach() * len(labels)
            correct += (predicted_class(logits.detach()) == labels).sum()

        train_loss = loss_sum.item() / used
        with cast():
            validation_loss, validation_accuracy = evaluate(averaged, preprocess, validation)
        if not math.isfinite(train_loss) or not math.isfinite(validation_loss):
            raise DataError(
                f"the loss became {train_loss:.4g} (validation {validation_loss:.4g}) in epoch "
                f"{epoch} with learning rate {lr:.3g}: try a lower train.lr (such as "
                f"{config.lr / 10:.1g}), more train.warmup, or model.batch_norm=true"
            )
        record = Epoch(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=correct.item() / used,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            lr=lr,
            seconds=time.perf_counter() - began,
        )
        history.append(record)
        show(record)
        figures = (validation_loss, -validation_accuracy)
        if config.monitor == "accuracy":
            figures = (figures[1], figures[0])
        if figures < best:
            best, best_epoch = figures, epoch
        if config.keep == "last" or best_epoch == epoch:
            kept_epoch, kept = epoch, copy.deepcopy(averaged.state_dict())
        if config.patience and epoch - best_epoch >= config.patience:
            break

    network.load_state_dict(kept)
    network.eval()
    return Fit(tuple(history), kept_epoch, stopped_early=len(history) < config.epochs)


def resolve_schedule(config: TrainConfig, rows: int) -> TrainConfig:
    """The config with epochs and batch size as numbers, fitted to so many rows where "auto"."""
    batch_size, epochs = config.batch_size, config.epochs
    if batch_size == "auto":
        batch_size = min(256, max(32, 2 ** round(math.log2(max(1, rows / 30)))))
    if epochs == "auto":
        epochs = min(100, max(15, round(1200 / math.ceil(rows / batch_size))))
    return config.model_copy(update={"batch_size": batch_size, "epochs": epochs})


def _inputs(
    raw: Tensor, preprocess: nn.Module, config: AugmentConfig
) -> tuple[Tensor, Tensor | None, float]:
    """Network input of one training batch, and what `mix` says of it."""
    pictures = raw.ndim == 4
    inputs = preprocess(augment_pixels(raw, config) if pictures else raw)
    if pictures and config.cutout:
        inputs = cut_out(inputs, config.cutout)
    if pictures:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if config.mixup or (config.cutmix and pictures):
        return mix(inputs, config)
    return inputs, None, 1.0


def loss_of(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean loss in nats: BCE with logits for one logit, cross-entropy for one a class.

    logits: [N, K], [N, 1], or either for each of M members, [N, M, ...], whose losses are
    averaged. labels: int64 [N]. class_weights: float32 [K], what a row of each class counts.
    """
    logits = logits.float()
    if logits.ndim == 3:
        labels = labels.repeat_interleave(logits.shape[1])
        logits = logits.flatten(0, 1)
    if logits.shape[1] == 1:
        targets = labels.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits[:, 0], targets, reduction="none"
        )
    else:
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=label_smoothing
        )
    if class_weights is None:
        return losses.mean()
    weights = class_weights[labels]
    return (losses * weights).sum() / weights.sum()


def class_weights(labels: Tensor, config: TrainConfig) -> Tensor | None:
    """rows / (classes * rows of the class), float32 [K], where config asks for balance."""
    if config.class_weight == "none":
        return None
    counts = torch.bincount(labels)
    return (len(labels) / (len(counts) * counts.clamp(min=1))).float()


def predicted_class(logits: Tensor) -> Tensor:
    """The most probable class, int64 [N]; of members, by their mean logits."""
    if logits.ndim == 3:
        logits = logits.mean(dim=1)
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.int64)
    return logits.argmax(dim=1)


@torch.no_grad()
def evaluate(network: nn.Module, preprocess: nn.Module, part: Batches) -> tuple[float, float]:
    """Loss in nats and accuracy, in eval mode."""
    network.eval()
    loss_sum, correct = 0.0, 0
    for raw, labels in part.all(part.answered_at_once):
        inputs = preprocess(raw)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits = network(inputs)
        loss_sum += loss_of(logits, labels).item() * len(labels)
        correct += int((predicted_class(logits) == labels).sum().item())
    return loss_sum / part.rows, correct / part.rows


def probabilities_of(model: nn.Module, part: Batches) -> np.ndarray:
    """The deployed model's probabilities, float32 [N, K], computed on the part's device."""
    with torch.inference_mode():
        return np.concatenate(
            [model(raw)[1].cpu().numpy() for raw, _ in part.all(part.answered_at_once)]
        )


def compute_precision(network: nn.Module, config: TrainConfig, device: torch.device) -> str:
    """ "float32" or "bfloat16", resolved.

    On CPU bfloat16 convolutions are the faster ones only with AMX (6 times, where it was
    measured: two cores of a Xeon, 64 -> 128 channels); linear layers are too small to gain.
    """
    if config.precision != "auto":
        return config.precision
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
    fast = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else torch.cpu._is_amx_tile_supported()
    )
    return "bfloat16" if convolves and fast else "float32"


def _autocast(
    network: nn.Module, config: TrainConfig, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    if compute_precision(network, config, device) == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _set_frozen(network: nn.Module, backbone: Backbone, *, frozen: bool) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in backbone.head or not frozen)


def _frozen_to_eval(network: nn.Module) -> None:
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


@torch.no_grad()
def _move_towards(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network; whole numbers are copied."""
    ours, theirs = averaged.state_dict(), network.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_(
        [ours[name] for name in floats], [theirs[name] for name in floats], 1 - decay
    )
    for name in ours.keys() - floats:
        ours[name].copy_(theirs[name])
