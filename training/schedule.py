"""The learning rate over a run, and how long a run is."""

from __future__ import annotations

import math

from training.recipe import TrainConfig


def resolve_schedule(config: TrainConfig, rows: int) -> TrainConfig:
    """The config with epochs and batch size as numbers, fitted to so many rows where "auto"."""
    batch_size, epochs = config.batch_size, config.epochs
    if batch_size == "auto":
        batch_size = min(256, max(32, 2 ** round(math.log2(max(1, rows / 30)))))
    if epochs == "auto":
        epochs = min(100, max(15, round(1200 / math.ceil(rows / batch_size))))
    return config.model_copy(update={"batch_size": batch_size, "epochs": epochs})


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The rate of one step: linear warm-up, then constant, half a cosine or a line down to zero.

    Loshchilov and Hutter 2017 (without restarts); the warm-up as in Goyal et al. 2017.
    """
    warmup = round(config.warmup * steps_per_epoch)
    if step < warmup:
        return config.lr * ((step + 1) / warmup)
    if config.schedule == "constant":
        return config.lr
    assert config.epochs != "auto"
    total = config.epochs * steps_per_epoch
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
