"""The optimizer."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from training.recipe import TrainConfig

# Parts of the names of parameters that are no weights of a linear map.
_NOT_DECAYED = ("bias", "norm", "scale", "token", "pos_embedding", "position")


def make_optimizer(
    network: nn.Module, config: TrainConfig, head: Collection[str] | None = None, share: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer that `config` names; weight decay on matrices, not on norms, biases, scales.

    head: the parameters that learn at the full rate, by name; the others at `share` of it. The
    groups say so in "share". All of them without `head`. A network's own `rates`, by parameter,
    are how much faster it learns and how much of the decay it gets.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates: dict[str, tuple[float, float]] = getattr(network, "rates", {})
    for name, parameter in network.named_parameters():
        faster, decay = rates.get(name, (1.0, 1.0))
        if parameter.ndim < 2 or any(part in name for part in _NOT_DECAYED):
            decay = 0.0
        if head is not None and name not in head:
            faster *= share
        groups.setdefault((faster, decay), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": config.weight_decay * decay, "share": faster}
        for (faster, decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            settings, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(settings, lr=config.lr, betas=(0.9, config.beta2), fused=True)
