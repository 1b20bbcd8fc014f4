"""Networks of one shape as one: their weights stacked, their layers batched operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# What B networks have learnt, each tensor [B, ...]: the weights [B, P], then the running mean and
# variance of each batch norm, [B, C].
State = list[Tensor]
# Matrix products are faster where matrices start at multiples of 16 bytes; what lies between them
# is 0 and stays so.
_ALIGNMENT = 4
# One parameter of all networks, [B, ...], and the place of its gradient, None where none is made.
_Parameter = tuple[Tensor, Tensor | None]


class StackedNetwork:
    """B fully connected networks: [N, ...] -> logits [B, N, K].

    state: what they have learnt, copied from them. gradients: of the weights, float32 [B, P]; each
    backward pass leaves its own there. matrices: so many of the P columns, the first ones, are
    linear maps; the rest are biases and batch norms. hidden: units that dropout is for. outputs: K.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        """networks: `build_network`'s for "mlp" or "linear", alike but for weights and dropout."""
        self._modules = [m for m in networks[0].children() if not isinstance(m, nn.Dropout)]
        shapes = [parameter.shape for parameter in _parameters(networks[0])]
        self._shapes = shapes
        self._sizes = [shape.numel() + -shape.numel() % _ALIGNMENT for shape in shapes]
        self._linears = sum(len(shape) == 2 for shape in shapes)
        self.matrices = sum(self._sizes[: self._linears])
        self._widths = [shape[0] for shape in shapes[: self._linears - 1]]
        self.hidden = sum(self._widths)
        self.outputs = shapes[self._linears - 1][0]
        states = zip(*(_state(network) for network in networks), strict=True)
        self._adopt([torch.stack(tensors).to(device) for tensors in states])

    def select(self, rows: Tensor) -> None:
        """Go on with these of the networks alone, int64 on the device."""
        self._adopt(selected(self.state, rows))

    def logits(self, inputs: Tensor, masks: Tensor | None = None) -> Tensor:
        """Of a training batch, with a graph for one backward pass; running statistics move.

        inputs: float32 [N, ...], the same for all. masks: float32 [B, N, hidden], what dropout
        multiplies the activations by.
        """
        return self._forward(inputs, self.state, self._trained, masks, training=True)

    @torch.no_grad()
    def answers(self, inputs: Tensor, state: State) -> Tensor:
        """The logits in eval mode, of such a state."""
        parameters = [(view, None) for view in self._views(state[0])]
        return self._forward(inputs, state, parameters, None, training=False)

    @torch.no_grad()
    def unload(self, network: nn.Module, state: State, row: int, steps: int) -> None:
        """Leave `network` in eval mode with one row of a state, which so many steps made."""
        values = self._views(state[0][row : row + 1])
        for parameter, value in zip(_parameters(network), values, strict=True):
            parameter.copy_(value[0])
        for statistic, rows in zip(_statistics(network), state[1:], strict=True):
            statistic.copy_(rows[row])
        for norm in _norms(network):
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(steps)
        network.eval()

    def _adopt(self, state: State) -> None:
        self.state = state
        self.gradients = torch.zeros_like(state[0])
        leaves = [view.detach().requires_grad_() for view in self._views(state[0])]
        self._trained = list(zip(leaves, self._views(self.gradients), strict=True))

    def _views(self, flat: Tensor) -> list[Tensor]:
        """[B, P] -> each parameter of all networks, [B, *shape]."""
        parts = zip(flat.split(self._sizes, dim=1), self._shapes, strict=True)
        return [part[:, : shape.numel()].unflatten(1, shape) for part, shape in parts]

    def _forward(
        self,
        inputs: Tensor,
        state: State,
        parameters: Sequence[_Parameter],
        masks: Tensor | None,
        *,
        training: bool,
    ) -> Tensor:
        count, rows = len(state[0]), len(inputs)
        matrices, vectors = iter(parameters[: self._linears]), iter(parameters[self._linears :])
        statistics = iter(state[1:])
        dropped = iter(() if masks is None else masks.split(self._widths, dim=2))
        hidden = inputs.flatten(1).expand(count, -1, -1)
        for module in self._modules:
            if isinstance(module, nn.Flatten):
                continue
            if isinstance(module, nn.Linear):
                hidden = _Linear.apply(hidden, *next(matrices), *next(vectors))  # type: ignore[no-untyped-call]
            elif isinstance(module, nn.BatchNorm1d):
                # The channels of all networks side by side: torch's own batch norm does them all.
                hidden = functional.batch_norm(
                    hidden.transpose(0, 1).reshape(rows, -1),
                    next(statistics).view(-1), next(statistics).view(-1),
                    _Flat.apply(*next(vectors)), _Flat.apply(*next(vectors)),
                    training, module.momentum or 0.0, module.eps,
                ).view(rows, count, -1).transpose(0, 1)  # fmt: skip
            else:
                hidden = module(hidden)
                if masks is not None:
                    hidden = hidden * next(dropped)
        return hidden


def selected(tensors: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """These rows, int64, of each."""
    return [tensor.index_select(0, rows) for tensor in tensors]


class DropoutMasks:
    """What the hidden units of each network are multiplied by, at a rate of its own.

    Drawn for all networks that began, those that have left too: what one gets depends on its place
    among them, not on who is left.
    """

    def __init__(
        self, networks: Sequence[nn.Module], hidden: int, seed: int, device: torch.device
    ) -> None:
        """hidden: units of a network."""
        self._shape = (len(networks), hidden)
        self._generator = torch.Generator(device).manual_seed(seed % 2**63)
        rates = [_dropout_rate(network) for network in networks]
        self._rates = torch.tensor(rates, device=device).view(-1, 1, 1)
        self._scales = 1 / (1 - self._rates)
        self._here: Tensor | None = None
        self._any = any(rates)

    def select(self, rows: Tensor) -> None:
        """Go on with these of the networks, int64 on the device."""
        self._rates, self._scales = selected([self._rates, self._scales], rows)
        self._here = rows if self._here is None else self._here.index_select(0, rows)
        self._any = bool(self._rates.any())

    def draw(self, rows: int) -> Tensor | None:
        """For so many rows: float32 [B, rows, hidden]; None where nothing is dropped."""
        if not self._any:
            return None
        count, hidden = self._shape
        noise = torch.rand(
            (count, rows, hidden), generator=self._generator, device=self._rates.device
        )
        if self._here is not None:
            noise = noise.index_select(0, self._here)
        return (noise >= self._rates) * self._scales


class _Linear(torch.autograd.Function):
    """inputs [B, N, D], weight [B, O, D], bias [B, O] -> [B, N, O].

    The parameters' gradients are written to their places; autograd would make them elsewhere and
    add them to what is there, which costs as much as half an optimizer's step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        weight_place: Tensor | None,
        bias: Tensor,
        bias_place: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.places = weight_place, bias_place
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        torch.bmm(gradient.transpose(1, 2), inputs, out=ctx.places[0])
        torch.sum(gradient, 1, out=ctx.places[1])
        before = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return before, None, None, None, None


class _Flat(torch.autograd.Function):
    """A parameter [B, C] -> [B * C]; its gradient is written to its place."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, place: Tensor | None) -> Tensor:
        ctx.place = place
        return parameter.flatten()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        ctx.place.copy_(gradient.view_as(ctx.place))
        return None, None


def _dropout_rate(network: nn.Module) -> float:
    return next((m.p for m in network.modules() if isinstance(m, nn.Dropout)), 0.0)


def _state(network: nn.Module) -> State:
    flat = [parameter.detach().flatten() for parameter in _parameters(network)]
    padded = [functional.pad(values, (0, -len(values) % _ALIGNMENT)) for values in flat]
    return [torch.cat(padded), *_statistics(network)]


def _parameters(network: nn.Module) -> list[nn.Parameter]:
    """Matrices first; otherwise in the order of the layers."""
    return sorted(network.parameters(), key=lambda parameter: parameter.ndim < 2)


def _statistics(network: nn.Module) -> list[Tensor]:
    found = [(norm.running_mean, norm.running_var) for norm in _norms(network)]
    return [statistic for pair in found for statistic in pair if statistic is not None]


def _norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
