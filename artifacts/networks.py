"""The networks a bundle can hold, and the graph that is exported around them.

It imports torch, so only training and the torch backends import it. It lives beside the manifest
because the eager backend needs it where nothing of `training` is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from artifacts.configs import (
    CnnNetwork,
    EnsembleNetwork,
    LinearNetwork,
    MlpNetwork,
    NetworkConfig,
    ResnetNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.ensembles import Ensemble, TableEnsemble
from artifacts.errors import DataError, DeviceError
from artifacts.layers import ACTIVATIONS, ResidualPair, conv_block, linear_layer
from artifacts.preprocess import Preprocess
from artifacts.steps import Encode, Step, network_shape


def build_network(
    config: NetworkConfig, input_shape: tuple[int, ...], steps: Sequence[Step], num_classes: int
) -> nn.Module:
    """The network that `config` describes: preprocessed float32 [N, ...] -> logits [N, outputs].

    input_shape, steps: of a row of raw input, and what becomes of it before the network.
    outputs: for two classes 1, the logit of the second; otherwise, and always for torchvision's
    networks (SqueezeNet's logits are never negative), one for each class.
    The weights are drawn from torch's global generator, those of an ensemble member after member.
    Raises DataError where the network does not fit such input, or an ensemble's members each other.
    """
    if isinstance(config, EnsembleNetwork):
        members = [
            build_network(member, input_shape, steps, num_classes) for member in config.members
        ]
        return Ensemble(config, members)
    outputs = 1 if num_classes == 2 else num_classes
    if isinstance(config, LinearNetwork | MlpNetwork):
        return _fully_connected(config, math.prod(network_shape(input_shape, steps)), outputs)
    if isinstance(config, TableNetwork):
        encode = next((step for step in steps if isinstance(step, Encode)), None)
        if encode is None:
            raise DataError("model.kind: a table network takes tables, found pictures")
        return TableEnsemble(config, encode, outputs)
    if len(input_shape) != 3:
        raise DataError(f"model.kind: {config.kind} takes pictures, found a table")
    if isinstance(config, TorchvisionNetwork):
        network = torchvision_network(config, num_classes)
        _check_fits(network, config, input_shape)
        return network
    halvings = len(config.channels) - isinstance(config, ResnetNetwork)
    if min(input_shape[1:]) < 2**halvings:
        raise DataError(
            f"model.channels: {halvings} times halved, expected pictures of at least "
            f"{2**halvings} pixels, found {input_shape[1]} x {input_shape[2]}"
        )
    if isinstance(config, ResnetNetwork):
        return _resnet(config, input_shape[0], outputs)
    return _cnn(config, input_shape[0], outputs)


def _fully_connected(config: LinearNetwork | MlpNetwork, width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    if isinstance(config, MlpNetwork):
        for hidden in config.hidden:
            layers.append(linear_layer(width, hidden, config.init, config.activation))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            width = hidden
    layers.append(linear_layer(width, outputs, config.init, "linear"))
    return nn.Sequential(*layers)


def _cnn(config: CnnNetwork, width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in config.channels:
        for last in [False] * (config.depth - 1) + [True]:
            layers.append(conv_block(width, channels, config.activation, pool=last))
            width = channels
    pool = nn.AdaptiveAvgPool2d(1) if config.pooling == "average" else nn.AdaptiveMaxPool2d(1)
    layers += [pool, nn.Flatten()]
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    layers.append(linear_layer(width, outputs, "xavier", "linear"))
    return nn.Sequential(*layers)


def _resnet(config: ResnetNetwork, width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [conv_block(width, config.channels[0], config.activation)]
    width = config.channels[0]
    for channels, pairs in zip(config.channels[1:], config.pairs, strict=True):
        layers.append(conv_block(width, channels, config.activation, pool=True))
        layers += [ResidualPair(channels, config.activation) for _ in range(pairs)]
        width = channels
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    layers.append(linear_layer(width, outputs, "xavier", "linear"))
    return nn.Sequential(*layers)


def torchvision_network(config: TorchvisionNetwork, outputs: int) -> nn.Module:
    """A torchvision classification network with random weights and `outputs` logits.

    Raises DataError for a name that torchvision does not have, DeviceError without torchvision.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise DeviceError(
            f"model {config.kind!r} needs torchvision, which is not installed"
        ) from error
    if config.name not in models.list_models(module=models):
        raise DataError(
            f"model.kind: torchvision has no classification network {config.name!r}; "
            f"there are: {', '.join(models.list_models(module=models))}"
        )
    options: dict[str, Any] = {} if config.dropout is None else {"dropout": config.dropout}
    if config.name in {"googlenet", "inception_v3"}:
        # Their second heads are for training alone.
        options |= {"aux_logits": False, "init_weights": True}
    try:
        network: nn.Module = models.get_model(
            config.name, weights=None, num_classes=outputs, **options
        )
    except TypeError as error:
        raise DataError(f"model.dropout: {config.name} takes none: {error}") from error
    return network


def _check_fits(
    network: nn.Module, config: TorchvisionNetwork, input_shape: tuple[int, ...]
) -> None:
    """Raise DataError where the network cannot answer such pictures; nothing is computed."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    without_data = {name: tensor.to("meta") for name, tensor in state.items()}
    picture = torch.zeros(1, *input_shape, device="meta")
    network.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(network, without_data, (picture,))
    # What torch and torchvision raise for sizes that do not fit.
    except (AssertionError, RuntimeError, ValueError) as error:
        channels, height, width = input_shape
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"model.kind: {config.name} cannot take pictures of {channels} channels and "
            f"{height} x {width} pixels (data.channels, data.size): {reason}"
        ) from error
    network.train()


class DeployedClassifier(nn.Module):
    """The exported graph: raw input -> preprocessing, network, temperature, softmax.

    Returns logits and probabilities, float32 [N, K]. A binary network's one logit z becomes
    [0, z]: its softmax is [1 - sigmoid(z), sigmoid(z)].
    """

    def __init__(self, preprocess: Preprocess, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.temperature = temperature

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """raw: [N, *input shape], uint8 pixels or float64 cells."""
        logits = self.network(self.preprocess(raw)) / self.temperature
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits, torch.softmax(logits, dim=1)
