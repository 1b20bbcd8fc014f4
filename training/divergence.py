"""Seeing that a run has diverged, and saying so with the numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from artifacts.errors import DataError
from training.recipe import TrainConfig
from training.state import TrainingState


def is_finite(network: nn.Module) -> bool:
    """Whether every weight is a number."""
    norms = torch._foreach_norm([parameter.detach() for parameter in network.parameters()])
    return bool(torch.stack(norms).isfinite().all())


def gradient_norm(state: TrainingState, config: TrainConfig) -> Tensor:
    """The length of the gradient before it is clipped, as it then is."""
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    parameters = list(state.network.parameters())
    if config.clip_norm:
        return nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def check_finite(
    state: TrainingState,
    loss: Tensor,
    norm: Tensor | None,
    lr: float,
    steps: int,
    config: TrainConfig,
) -> None:
    """Raise DataError where the run has diverged."""
    assert norm is not None
    found, length = loss.item(), norm.item()
    # float16's scaler leaves out the steps whose gradients are too long for it.
    if math.isfinite(found) and (math.isfinite(length) or state.scaler.is_enabled()):
        if math.isfinite(length):
            state.gradient_norm = length
        return
    before = "" if state.gradient_norm is None else f", {state.gradient_norm:.3g} when last finite"
    raise DataError(
        f"diverged: the loss became {found:.4g} in epoch {state.epoch}, step {state.batches + 1} "
        f"of {steps}, with learning rate {lr:.3g} and gradient norm {length:.3g}{before}: "
        f"{_against_divergence(config)}"
    )


def check_epoch(
    state: TrainingState, train_loss: float, validation_loss: float, lr: float, config: TrainConfig
) -> None:
    """Raise DataError where an epoch's losses are no numbers."""
    if not math.isfinite(train_loss) or not math.isfinite(validation_loss):
        norm = state.gradient_norm
        raise DataError(
            f"diverged: the loss became {train_loss:.4g} (validation {validation_loss:.4g}) in "
            f"epoch {state.epoch} with learning rate {lr:.3g}"
            f"{'' if norm is None else f' and gradient norm {norm:.3g}'}: "
            f"{_against_divergence(config)}"
        )


def _against_divergence(config: TrainConfig) -> str:
    clip = "" if config.clip_norm else ", train.clip_norm=1"
    return (
        f"try a lower train.lr (such as {config.lr / 10:.1g}){clip}, more train.warmup, or "
        "model.batch_norm=true"
    )
