"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """`averaged` follows `network`, buffers too; whole numbers are copied."""

    def __init__(self, averaged: nn.Module, network: nn.Module) -> None:
        ours, theirs = averaged.state_dict(), network.state_dict()
        floats = [name for name, value in ours.items() if value.is_floating_point()]
        self._ours = [ours[name] for name in floats]
        self._theirs = [theirs[name] for name in floats]
        self._counts = [(ours[name], theirs[name]) for name in ours.keys() - floats]

    @torch.no_grad()
    def move(self, decay: float) -> None:
        """averaged = decay * averaged + (1 - decay) * network."""
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)
        for ours, theirs in self._counts:
            ours.copy_(theirs)
