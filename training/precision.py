"""float32, or bfloat16 where the device computes it faster; float16 where it is asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn

from artifacts.errors import DataError
from training.recipe import TrainConfig


def compute_precision(network: nn.Module, config: TrainConfig, device: torch.device) -> str:
    """ "float32", "bfloat16" or "float16", resolved.

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


def autocast(
    network: nn.Module, config: TrainConfig, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    precision = compute_precision(network, config, device)
    if precision == "float32":
        return contextlib.nullcontext
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """DataError in place of what torch.compile raises where it cannot, with its first line."""
    try:
        yield
    except RuntimeError as error:
        if "torch._dynamo" not in sys.modules:
            raise
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"train.compile: torch cannot compile this network here: {reason}; install what it "
            "asks for (on CPU a C++ compiler), or train.compile=false"
        ) from error


def loss_scaler(
    network: nn.Module, config: TrainConfig, device: torch.device
) -> torch.amp.GradScaler:
    """What keeps float16's small gradients from becoming 0; with the others it does nothing."""
    enabled = compute_precision(network, config, device) == "float16"
    return torch.amp.GradScaler(device.type, enabled=enabled)
