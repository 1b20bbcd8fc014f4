"""The optimizers' steps for stacked weights, each network with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.recipe import TrainConfig
from training.tuning.stacked_network import StackedNetwork, selected

_BETA1, _EPS = 0.9, 1e-8  # torch's, which training.optim leaves as they are


class StackedOptimizer:
    """torch's SGD, Adam and AdamW on the weights of a StackedNetwork.

    Weight decay is for its matrices alone. What differs between networks and steps is made for a
    whole epoch at once, by `plan`, so that nothing goes to the device between two steps.
    """

    def __init__(self, network: StackedNetwork, configs: Sequence[TrainConfig]) -> None:
        """configs: by network; with equal optimizer, momentum, nesterov, beta2 and clip_norm."""
        self._network = network
        self._config = configs[0]
        self._decays = [config.weight_decay for config in configs]
        kept = 1 if self._config.optimizer == "sgd" else 2
        # Momentum; or the gradient's mean and mean square.
        self._moments = [torch.zeros_like(network.state[0]) for _ in range(kept)]
        self._scratch = torch.empty_like(network.state[0])

    def select(self, rows: Tensor) -> None:
        """Go on with these of the networks, after the network's own `select`."""
        self._decays = [self._decays[row] for row in rows.tolist()]
        self._moments = selected(self._moments, rows)
        self._scratch = torch.empty_like(self._network.state[0])

    def plan(self, rates: Sequence[Sequence[tuple[float, float | None]]], steps: int) -> None:
        """The settings of an epoch, after so many steps.

        rates: [steps of the epoch][networks], what `Schedule.at` says: the learning rate, and the
        momentum or None for the config's.
        """
        config, device = self._config, self._network.gradients.device
        lr = torch.tensor([[rate for rate, _ in step] for step in rates], dtype=torch.float64)
        usual = config.momentum if config.optimizer == "sgd" else _BETA1
        momentum = torch.tensor(
            [[usual if own is None else own for _, own in step] for step in rates],
            dtype=torch.float64,
        )
        decay = torch.tensor(self._decays, dtype=torch.float64).expand_as(lr)
        if config.optimizer == "sgd":
            table = [-lr, momentum, decay]
        else:
            count = torch.arange(steps + 1, steps + 1 + len(lr), dtype=torch.float64)[:, None]
            # The corrections for means that began at 0 (Kingma and Ba 2015, end of section 2).
            self._corrections = (1 - config.beta2**count).sqrt().flatten().tolist()
            rate = -lr * (1 - config.beta2**count).sqrt() / (1 - momentum**count)
            if config.optimizer == "adamw":
                decay = 1 - lr * decay
            table = [rate, 1 - momentum, decay]
        # [steps, 3, B, 1]
        self._table = torch.stack(table, dim=1).unsqueeze(3).float().to(device)
        self._decayed = any(self._decays)

    @torch.no_grad()
    def step(self, number: int, *, look: bool) -> Tensor | None:
        """Move the weights by the gradients, in the step of that number, from 0, of the epoch.

        look: return the length of each network's gradient before it is clipped, [B].
        """
        gradients, matrices = self._network.gradients, self._network.matrices
        weights, scratch, config = self._network.state[0], self._scratch, self._config
        rate, share, decay = self._table[number].unbind()
        norms = None
        if look or config.clip_norm:
            norms = torch.linalg.vector_norm(gradients, dim=1)
        if config.clip_norm and norms is not None:
            # As torch.nn.utils.clip_grad_norm_ does.
            gradients.mul_((config.clip_norm / (norms + 1e-6)).clamp_(max=1.0).unsqueeze(1))
        if self._decayed and config.optimizer == "adamw":
            weights[:, :matrices].mul_(decay)
        elif self._decayed:
            gradients[:, :matrices].addcmul_(weights[:, :matrices], decay)
        if config.optimizer == "sgd":
            (mean,) = self._moments
            mean.mul_(share).add_(gradients)
            direction = torch.addcmul(gradients, mean, share) if config.nesterov else mean
        else:
            mean, square = self._moments
            mean.lerp_(gradients, share)
            square.mul_(config.beta2).addcmul_(gradients, gradients, value=1 - config.beta2)
            torch.sqrt(square, out=scratch).add_(_EPS * self._corrections[number])
            direction = torch.div(mean, scratch, out=scratch)
        weights.addcmul_(direction, rate)
        return norms
