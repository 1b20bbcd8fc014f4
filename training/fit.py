"""The training loop.

Rows are indexed in shuffled batches, changed at random where the recipe says so, and go through
the very preprocessing that is exported.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from artifacts.errors import DataError
from artifacts.manifest import Epoch
from training.augment import augment_pixels, cut_out, mix
from training.batches import Batches
from training.evaluation import evaluate
from training.losses import class_weights, loss_of, predicted_class
from training.optim import make_optimizer
from training.precision import autocast
from training.recipe import AugmentConfig, TrainConfig
from training.schedule import learning_rate


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
    show: Callable[[Epoch, float], None],
    backbone: Backbone | None = None,
) -> Fit:
    """Train `network` in place and leave it, in eval mode, with the weights that config.keep names.

    network: float32 [N, ...] -> logits [N, K], [N, 1] for two classes, or while training
    [N, members, ...] of either; on the batches' device. preprocess: raw [N, ...] -> float32; on
    the same device. show: called after each epoch, with its seconds.
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
    cast = autocast(network, config, device)
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
        )
        history.append(record)
        show(record, time.perf_counter() - began)
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
