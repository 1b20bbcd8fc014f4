"""Batch norm over the rows of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.ranks import Ranks


def synchronise_batch_norm(network: nn.Module, ranks: Ranks) -> None:
    """While training, batch norm takes mean and variance over the rows of all processes.

    torch's SyncBatchNorm does so on CUDA alone. The modules stay what they are.
    """
    if ranks.world == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = _GlobalBatchNorm(module)  # type: ignore[method-assign]


def restore_batch_norm(network: nn.Module) -> None:
    """Undo `synchronise_batch_norm`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__dict__.pop("forward", None)


class _GlobalBatchNorm:
    """The forward of one batch norm: [N, C, ...] -> the same shape."""

    def __init__(self, module: nn.modules.batchnorm._BatchNorm) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        if not module.training:
            return type(module).forward(module, x)
        values = x.float()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = values.new_full((1,), values.numel() / values.shape[1])
        summed = _SumOverRanks.apply(torch.cat([values.sum(dims), count]))
        total = summed[-1]
        mean = summed[:-1] / total
        centred = values - mean.reshape(shape)
        variance = _SumOverRanks.apply(centred.square().sum(dims)) / total
        _move_statistics(module, mean.detach(), variance.detach(), total.detach())
        normed = centred * (variance + module.eps).rsqrt().reshape(shape)
        if module.affine:
            normed = normed * module.weight.reshape(shape) + module.bias.reshape(shape)
        return normed.to(x.dtype)


@torch.no_grad()
def _move_statistics(
    module: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, total: Tensor
) -> None:
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    share = module.momentum
    if share is None:
        share = 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean, share)
    module.running_var.lerp_(variance * (total / (total - 1)), share)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; its gradient is theirs, summed."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
