"""Pictures changed at random while training, a whole batch at a time, on its device.

Draws from torch's global generators, which `fit` seeds. Evaluation never comes here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.recipe import AugmentConfig

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in artifacts.pixels


def augment_pixels(raw: Tensor, config: AugmentConfig) -> Tensor:
    """raw: uint8 [N, C, H, W] -> the same shape, uint8 or float32 from 0 to 255."""
    flipped = torch.rand((len(raw), 1), device=raw.device) < 0.5 if config.flip else None
    if config.crop:
        raw = _moved(raw, config.crop, config.pad, flipped)
    elif flipped is not None:
        raw = torch.where(flipped[:, :, None, None], raw.flip(3), raw)
    if config.rotate or config.shift or config.zoom:
        raw = _turned(raw.float(), config)
    if config.colour:
        raw = _recoloured(raw.float(), config.colour)
    return raw


def cut_out(inputs: Tensor, size: int) -> Tensor:
    """inputs: float32 [N, C, H, W], mean 0; a square of each, around a random pixel, is 0.

    DeVries and Taylor 2017 (arXiv 1708.04552).
    """
    rows, _, height, width = inputs.shape
    device = inputs.device
    top = torch.randint(height, (rows, 1), device=device) - size // 2
    left = torch.randint(width, (rows, 1), device=device) - size // 2
    y = torch.arange(height, device=device) - top
    x = torch.arange(width, device=device) - left
    inside = ((y >= 0) & (y < size))[:, None, :, None] & ((x >= 0) & (x < size))[:, None, None, :]
    return inputs.masked_fill(inside, 0.0)


def mix(inputs: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor, float]:
    """mixup or cutmix within the batch: inputs, each row's partner int64 [N], and its own share.

    cutmix is for pictures alone, [N, C, H, W]; mixup for tables too, [N, D].
    The loss is share * loss(own label) + (1 - share) * loss(the partner's label).
    """
    partner = torch.randperm(len(inputs), device=inputs.device)
    cut = (
        inputs.ndim == 4
        and config.cutmix > 0
        and (config.mixup == 0 or torch.rand(()).item() < 0.5)
    )
    alpha = config.cutmix if cut else config.mixup
    share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample().item()
    if not cut:
        return torch.lerp(inputs.index_select(0, partner), inputs, share), partner, share
    height, width = inputs.shape[2:]
    cut_height = round(height * math.sqrt(1 - share))
    cut_width = round(width * math.sqrt(1 - share))
    top = int(torch.randint(height - cut_height + 1, ()).item())
    left = int(torch.randint(width - cut_width + 1, ()).item())
    mixed = inputs.clone()
    window = (slice(None), slice(None), slice(top, top + cut_height), slice(left, left + cut_width))
    mixed[window] = inputs[partner][window]
    return mixed, partner, 1 - cut_height * cut_width / (height * width)


def _moved(raw: Tensor, most: int, pad: str, flipped: Tensor | None) -> Tensor:
    """Moved by -most to +most pixels each way, after those in `flipped`, [N, 1], were mirrored."""
    rows, channels, height, width = raw.shape
    device = raw.device
    shift = torch.randint(-most, most + 1, (2, rows, 1), device=device)
    y = torch.arange(height, device=device) + shift[0]
    x = torch.arange(width, device=device) + shift[1]
    from_y, from_x = _mirrored(y, height), _mirrored(x, width)
    if flipped is not None:
        from_x = torch.where(flipped, width - 1 - from_x, from_x)
    # One index a pixel: several times faster than advanced indexing by row, y and x.
    source = (from_y[:, :, None] * width + from_x[:, None, :]).flatten(1)[:, None, :]
    moved = raw.flatten(2).gather(2, source.expand(-1, channels, -1)).view(raw.shape)
    if pad == "mirror":
        return moved
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    return moved * inside[:, None]


def _mirrored(index: Tensor, size: int) -> Tensor:
    """Positions beyond the edges, taken back inside as a mirror on the edge would."""
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def _turned(raw: Tensor, config: AugmentConfig) -> Tensor:
    """Rotated, moved and zoomed, with bilinear sampling; what comes in mirrors or is black."""
    rows, device = len(raw), raw.device

    def spread(amount: float, count: int = 1) -> Tensor:
        return (torch.rand((rows, count), device=device) * 2 - 1) * amount

    angle = spread(math.radians(config.rotate))[:, 0]
    scale = 1 + spread(config.zoom)[:, 0]
    height, width = raw.shape[2:]
    # affine_grid's coordinates go from -1 to 1 whatever the sides are.
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.zeros((rows, 2, 3), device=device)
    theta[:, 0, 0], theta[:, 0, 1] = cosine, -sine * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sine * width / height, cosine
    theta[:, :, 2] = 2 * spread(config.shift, 2)
    grid = functional.affine_grid(theta, list(raw.shape), align_corners=False)
    padding = "reflection" if config.pad == "mirror" else "zeros"
    return functional.grid_sample(raw, grid, padding_mode=padding, align_corners=False)


def _recoloured(raw: Tensor, amount: float) -> Tensor:
    """Brightness, contrast and (RGB) saturation, each by a factor from 1 - amount to 1 + amount."""

    def factor() -> Tensor:
        return 1 + (torch.rand((len(raw), 1, 1, 1), device=raw.device) * 2 - 1) * amount

    raw = raw * factor()
    mean = raw.mean(dim=(1, 2, 3), keepdim=True)
    raw = mean + (raw - mean) * factor()
    if raw.shape[1] == 3:
        weights = torch.tensor(_LUMA, device=raw.device).reshape(1, 3, 1, 1)
        grey = (raw * weights).sum(dim=1, keepdim=True)
        raw = grey + (raw - grey) * factor()
    return raw.clamp(0, 255)
