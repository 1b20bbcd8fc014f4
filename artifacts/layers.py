"""What networks are made of: layers with their initial weights, activations, blocks."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from artifacts.configs import Activation

_GAINS: dict[str, Literal["linear", "tanh", "leaky_relu", "relu"]] = {
    "linear": "linear",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def linear_layer(inputs: int, outputs: int, init: str, followed_by: str) -> nn.Linear:
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


def conv_block(
    inputs: int, outputs: int, activation: Activation, *, pool: bool = False
) -> nn.Sequential:
    """3 x 3 convolution without bias, 2 x 2 max pooling if asked, batch norm, activation.

    The pooling comes before the norm: what is normalised is a quarter then, and a step takes a
    fifth to a third less time (as in https://github.com/KellerJordan/cifar10-airbench).
    """
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    gain = _GAINS.get(activation, "relu")
    nn.init.kaiming_normal_(convolution.weight, a=0.01, nonlinearity=gain)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs), ACTIVATIONS[activation]()]
    if pool:
        layers.insert(1, nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class ResidualPair(nn.Module):
    """x + two blocks of x (He et al. 2016): [N, width, H, W] -> the same shape."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            conv_block(width, width, activation), conv_block(width, width, activation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [N, width, H, W]."""
        out: Tensor = x + self.blocks(x)
        return out
