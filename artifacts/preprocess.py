"""The preprocessing steps of a manifest as a torch module, which is exported with the network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from artifacts.steps import Clip, Encode, Fill, Normalize, NumberEncoding, Reorder, Scale, Step

# No value comes any way through it.
_NO_BIN = (0.0, math.inf)
# Standard deviations beyond which a number is merely wild.
_WILD = 1e6


class Preprocess(nn.Module):
    """Raw input -> float32 network input, step by step as the manifest lists them."""

    def __init__(self, steps: Sequence[Step], input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        # One value for each channel or column, shaped to meet [N, channels, H, W] or [N, D].
        shape = (1, -1, *([1] * (len(input_shape) - 1)))
        self.encoders = nn.ModuleList(
            TableEncoder(step) for step in self.steps if isinstance(step, Encode)
        )
        for index, step in enumerate(self.steps):
            if isinstance(step, Reorder):
                order = torch.tensor(step.channels)
                self.register_buffer(f"order_{index}", order, persistent=False)
            for key in ("mean", "std", "values"):
                if hasattr(step, key):
                    value = torch.tensor(getattr(step, key), dtype=torch.float64).reshape(shape)
                    self.register_buffer(f"{key}_{index}", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: uint8 [N, C, H, W] or float64 [N, D]; returns float32, [N, *network_shape]."""
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
            elif isinstance(step, Reorder):
                x = torch.index_select(x, 1, getattr(self, f"order_{index}"))
            else:
                x = self.encoders[0](x)
        return x.to(torch.float32)


class TableEncoder(nn.Module):
    """The step `Encode`, in float64 until its end: equal arithmetic in every format."""

    number: Tensor
    fill: Tensor
    center: Tensor
    scale: Tensor
    bin: Tensor
    bin_low: Tensor
    bin_width: Tensor
    indicator: Tensor
    category: Tensor
    category_value: Tensor

    def __init__(self, step: Encode) -> None:
        super().__init__()
        self.limit = step.limit
        numbers = [(i, e) for i, e in enumerate(step.inputs) if isinstance(e, NumberEncoding)]
        bins = [
            (low, high - low)
            for _, entry in numbers
            for low, high in itertools.islice(
                itertools.chain(itertools.pairwise(entry.edges), itertools.repeat(_NO_BIN)),
                step.bins,
            )
        ]
        categories = [
            (index, value)
            for index, entry in enumerate(step.inputs)
            if not isinstance(entry, NumberEncoding)
            for value in entry.values
        ]
        self._keep("number", [index for index, _ in numbers])
        for key in ("fill", "center", "scale"):
            self._keep(key, [float(getattr(entry, key)) for _, entry in numbers])
        self._keep("bin", [at for at in range(len(numbers)) for _ in range(step.bins)])
        self._keep("bin_low", [low for low, _ in bins])
        self._keep("bin_width", [width for _, width in bins])
        self._keep("indicator", [at for at, (_, entry) in enumerate(numbers) if entry.indicator])
        self._keep("category", [index for index, _ in categories])
        self._keep("category_value", [float(value) for _, value in categories])

    def _keep(self, name: str, values: Sequence[int] | Sequence[float]) -> None:
        floats = any(isinstance(value, float) for value in values)
        tensor = torch.tensor(values, dtype=torch.float64 if floats else torch.int64)
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: float64 [N, D], NaN where missing; returns float64 [N, step.width]."""
        found: list[Tensor] = []
        if len(self.number):
            numbers = torch.index_select(x, 1, self.number)
            missing = torch.isnan(numbers)
            numbers = torch.where(missing, self.fill, numbers)
            # Cut first: the square of what is wild would overflow.
            z = torch.clamp((numbers - self.center) / self.scale, -_WILD, _WILD)
            found.append(z / torch.sqrt(z / self.limit * (z / self.limit) + 1.0))
            if len(self.bin):
                through = torch.index_select(numbers, 1, self.bin) - self.bin_low
                found.append(torch.clamp(through / self.bin_width, 0.0, 1.0))
            if len(self.indicator):
                found.append(torch.index_select(missing, 1, self.indicator).to(x.dtype))
        if len(self.category):
            values = torch.index_select(x, 1, self.category)
            values = torch.where(torch.isnan(values), torch.full_like(values, -1.0), values)
            found.append(torch.eq(values, self.category_value).to(x.dtype))
        return torch.cat(found, dim=1)
