"""The networks a bundle can hold, and the graph that is exported around them.

It imports torch, so only training and the torch backends import it. It lives beside the manifest
because the eager backend needs it where nothing of `training` is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from artifacts.configs import (
    Activation,
    CnnNetwork,
    EnsembleNetwork,
    LinearNetwork,
    MlpNetwork,
    NetworkConfig,
    ResnetNetwork,
    TableNetwork,
    TorchvisionNetwork,
)
from artifacts.errors import DataError, DeviceError
from artifacts.preprocess import Preprocess
from artifacts.steps import Encode, Step, network_shape

_GAINS: dict[str, Literal["linear", "tanh", "leaky_relu", "relu"]] = {
    "linear": "linear",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
}
# Categories of more values are embedded, in at most so many numbers; embeddings learn faster than
# the layers behind them, and decay less.
_ONE_HOT = 8
_CATEGORY_WIDTH = 16
_EMBEDDING_RATES = (4.0, 0.1)
_MOST_LOSSES = 4096
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


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
            layers.append(_linear(width, hidden, config.init, config.activation))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(_ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            width = hidden
    layers.append(_linear(width, outputs, config.init, "linear"))
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
    layers.append(_linear(width, outputs, "xavier", "linear"))
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
    layers.append(_linear(width, outputs, "xavier", "linear"))
    return nn.Sequential(*layers)


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
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs), _ACTIVATIONS[activation]()]
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


class TableEnsemble(nn.Module):
    """`TableNetwork`: embeddings, then members that share each linear layer.

    While training the members' logits, [N, members, outputs], so that each has its own loss;
    otherwise their mean, [N, outputs].
    rates: how much faster some parameters learn, and how much less they decay, by name.
    """

    def __init__(self, config: TableNetwork, encode: Encode, outputs: int) -> None:
        super().__init__()
        self.members = config.members
        self.category_dropout = config.category_dropout
        self.input_width = encode.width
        self.numbers, self.bins = len(encode.numbers), encode.bins
        self.plain = sum(entry.indicator for entry in encode.numbers)
        self.category_sizes = encode.category_sizes
        width = self.plain
        self.rates: dict[str, tuple[float, float]] = {}
        if self.numbers:
            shape = (self.numbers, config.embedding)
            self.number_scale = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
            self.number_bias = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
            bins = torch.zeros(self.numbers, config.embedding, self.bins)
            self.bin_weight = nn.Parameter(bins)
            self.rates["bin_weight"] = _EMBEDDING_RATES
            width += self.numbers * config.embedding
        self.categories = nn.ParameterDict()
        for index, size in enumerate(self.category_sizes):
            if size > _ONE_HOT:
                embedded = min(_CATEGORY_WIDTH, round(1.6 * size**0.5))
                table = torch.empty(embedded, size).normal_(std=0.5)
                self.categories[str(index)] = nn.Parameter(table)
                self.rates[f"categories.{index}"] = _EMBEDDING_RATES
                size = embedded
            width += size
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers.append(_SharedLinear(config.members, width, hidden, first=not layers))
            layers.append(_ACTIVATIONS[config.activation]())
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            width = hidden
        self.layers = nn.Sequential(*layers)
        bound = 1 / math.sqrt(width)
        head = torch.empty(config.members, width, outputs)
        self.head = nn.Parameter(head.uniform_(-bound, bound))
        head_bias = torch.empty(config.members, outputs)
        self.head_bias = nn.Parameter(head_bias.uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [N, encode.width]."""
        hidden = self.layers(self._embedded(x).unsqueeze(1))
        if self.training:
            logits: Tensor = torch.einsum("nmw,mwo->nmo", hidden, self.head) + self.head_bias
            return logits
        # The mean over the members, as one linear layer.
        weight = self.head.flatten(0, 1).t() / self.members
        return functional.linear(hidden.flatten(1), weight, self.head_bias.mean(dim=0))

    def _embedded(self, x: Tensor) -> Tensor:
        numbers, *rest = torch.split(
            x, [self.numbers * (1 + self.bins), self.plain, *self.category_sizes], dim=1
        )
        found = [rest[0]]
        if self.numbers:
            scaled = numbers[:, : self.numbers].unsqueeze(2)
            embedded = (scaled * self.number_scale + self.number_bias).flatten(1)
            if self.bins:
                embedded = embedded + self._embedded_bins(numbers[:, self.numbers :])
            found.append(embedded)
        for index, category in enumerate(rest[1:]):
            if self.training and self.category_dropout:
                shown = torch.rand((len(x), 1), device=x.device) >= self.category_dropout
                category = category * shown
            if str(index) in self.categories:
                category = functional.linear(category, self.categories[str(index)])
            found.append(category)
        return torch.cat(found, dim=1)

    def _embedded_bins(self, bins: Tensor) -> Tensor:
        """bins: [N, numbers * bins] -> [N, numbers * embedding], each number by its own matrix."""
        if self.training:
            by_number = bins.reshape(-1, self.numbers, self.bins).transpose(0, 1)
            product = by_number @ self.bin_weight.transpose(1, 2)
            return product.transpose(0, 1).flatten(1)
        # Faster to train as a batch of products, but ONNX Runtime computes that of a single row
        # in another order than that of many; a convolution goes row by row.
        weight = self.bin_weight.flatten(0, 1).unsqueeze(2)
        return functional.conv1d(bins.unsqueeze(2), weight, groups=self.numbers).flatten(1)


class _SharedLinear(nn.Module):
    """A linear layer that the members share; its input and output are scaled for each of them:
    [N, members, inputs], or [N, 1, inputs] for all, -> [N, members, outputs].
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))
        # Random scales make the members differ from the start.
        start = torch.randn(members, inputs) if first else torch.ones(members, inputs)
        self.scale_in = nn.Parameter(start)
        self.scale_out = nn.Parameter(torch.ones(members, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32."""
        return functional.linear(x * self.scale_in, self.weight) * self.scale_out + self.bias


class Ensemble(nn.Module):
    """`EnsembleNetwork`: the mean of its members' logits, [N, outputs], when answering.

    So its probabilities are the normalised geometric mean of theirs. Additions and one division,
    element by element: ONNX Runtime computes them bit for bit alike at every batch size on CPU,
    which logarithms and exponentials of our own would not be sure to be.
    While training the logits side by side, [N, members, outputs], so that each member has a loss of
    its own. Where members have members themselves (`TableEnsemble`), all are repeated until each
    network has as many: then the mean over them is that over the networks.
    rates: the members' own, by their parameters' names here.
    """

    def __init__(self, config: EnsembleNetwork, networks: Sequence[nn.Module]) -> None:
        """Hold the networks themselves. Raises DataError where they differ in their outputs."""
        super().__init__()
        outputs = [_num_outputs(network) for network in networks]
        if len(set(outputs)) > 1:
            found = zip(config.members, outputs, strict=True)
            raise DataError(
                "model.members: an ensemble averages logits, expected as many from each member, "
                f"found {', '.join(f'{number} of {member.kind}' for member, number in found)}; "
                "for two classes torchvision's networks have two, the others one"
            )
        self.members = nn.ModuleList(networks)
        self.rates = {
            f"members.{index}.{name}": rate
            for index, network in enumerate(networks)
            if isinstance(network, TableEnsemble)
            for name, rate in network.rates.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [N, ...], preprocessed."""
        logits: list[Tensor] = [member(x) for member in self.members]
        if self.training:
            return _side_by_side(logits)
        total = logits[0]
        for other in logits[1:]:
            total = total + other
        return total / len(logits)


def _side_by_side(logits: list[Tensor]) -> Tensor:
    """[N, outputs] or [N, members, outputs] of each -> [N, places, outputs], as many for each."""
    counts = [1 if each.ndim == 2 else each.shape[1] for each in logits]
    common = math.lcm(*counts)
    if common * len(logits) > _MOST_LOSSES:
        raise DataError(
            "model.members: to train them together, expected numbers of members in the tables' "
            f"networks with a small common multiple, found {', '.join(map(str, counts))}"
        )
    return torch.cat(
        [
            (each.unsqueeze(1) if each.ndim == 2 else each).repeat_interleave(
                common // count, dim=1
            )
            for each, count in zip(logits, counts, strict=True)
        ],
        dim=1,
    )


def _num_outputs(network: nn.Module) -> int:
    if isinstance(network, TableEnsemble):
        return network.head.shape[2]
    # In all the others, torchvision's too, the head is the last to be made.
    return list(network.parameters())[-1].shape[0]


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
