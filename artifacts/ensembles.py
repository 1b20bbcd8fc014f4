"""Networks of several members: one for tables whose members share layers, and any side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from artifacts.configs import EnsembleNetwork, TableNetwork
from artifacts.errors import DataError
from artifacts.layers import ACTIVATIONS
from artifacts.steps import Encode

# Categories of more values are embedded, in at most so many numbers; embeddings learn faster than
# the layers behind them, and decay less.
_ONE_HOT = 8
_CATEGORY_WIDTH = 16
_EMBEDDING_RATES = (4.0, 0.1)
_MOST_LOSSES = 4096


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
            layers.append(ACTIVATIONS[config.activation]())
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
