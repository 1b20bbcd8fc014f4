"""The networks a bundle can hold, and the graph that is exported around them.

It imports torch, so only training and the torch backends import it. It lives beside the manifest
because the eager backend needs it where nothing of `training` is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from artifacts.manifest import (
    Clip,
    Fill,
    LinearNetwork,
    MlpNetwork,
    Normalize,
    Scale,
    Step,
)

_GAINS: dict[str, Literal["linear", "tanh", "leaky_relu", "relu"]] = {
    "linear": "linear",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def build_network(
    config: LinearNetwork | MlpNetwork, input_shape: tuple[int, ...], num_classes: int
) -> nn.Sequential:
    """The network that `config` describes: float32 [N, *input_shape] -> logits [N, outputs].

    outputs: 1 for two classes (the logit of the second), otherwise one for each class.
    The weights are drawn from torch's global generator.
    """
    width = 1
    for size in input_shape:
        width *= size
    outputs = 1 if num_classes == 2 else num_classes
    layers: list[nn.Module] = [nn.Flatten()]
    if isinstance(config, MlpNetwork):
        for hidden in config.hidden:
            layers.append(_linear(width, hidden, config.init, config.activation))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(_ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            width = hidden
    layers.append(_linear(width, outputs, config.init, "linear"))
    return nn.Sequential(*layers)


def _linear(inputs: int, outputs: int, init: str, followed_by: str) -> nn.Linear:
    """Kaiming (He et al. 2015) with the gain of what follows, or Xavier (Glorot 2010); bias 0."""
    layer = nn.Linear(inputs, outputs)
    if init == "kaiming":
        # GELU and SiLU have no gain of their own in torch; ReLU's is the usual choice.
        gain = _GAINS.get(followed_by, "relu")
        nn.init.kaiming_normal_(layer.weight, a=0.01, nonlinearity=gain)
    else:
        nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Preprocess(nn.Module):
    """Raw input -> float32 network input, step by step as the manifest lists them."""

    def __init__(self, steps: Sequence[Step], input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        # One value for each channel or column, shaped to meet [N, channels, H, W] or [N, D].
        shape = (1, -1, *([1] * (len(input_shape) - 1)))
        for index, step in enumerate(self.steps):
            for key in ("mean", "std", "values"):
                if hasattr(step, key):
                    value = torch.tensor(getattr(step, key), dtype=torch.float64).reshape(shape)
                    self.register_buffer(f"{key}_{index}", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: uint8 [N, C, H, W] or float64 [N, D]; returns float32 of the same shape."""
        for index, step in enumerate(self.steps):
            if isinstance(step, Scale):
                x = x.to(torch.float32) * step.factor
            elif isinstance(step, Fill):
                x = torch.where(torch.isnan(x), getattr(self, f"values_{index}").to(x.dtype), x)
            elif isinstance(step, Normalize):
                mean = getattr(self, f"mean_{index}").to(x.dtype)
                std = getattr(self, f"std_{index}").to(x.dtype)
                x = (x - mean) / std
            elif isinstance(step, Clip):
                x = torch.clamp(x, -step.limit, step.limit)
        return x.to(torch.float32)


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
