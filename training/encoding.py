"""The preprocessing steps of a set, with statistics of its training part alone."""

from __future__ import annotations

import numpy as np

from artifacts.configs import NetworkConfig, table_bins
from artifacts.errors import DataError
from artifacts.inputs import BooleanColumn, CategoryColumn, ImageInput, TableInput
from artifacts.steps import (
    CategoryEncoding,
    Encode,
    Normalize,
    NumberEncoding,
    Reorder,
    Scale,
    Step,
)
from training.batches import Batches
from training.data import Dataset
from training.recipe import PixelsConfig

# A value that many rows share gives no more edges than this share of a bin's rows would.
_SPIKE = 0.1
# Numbers are cut here for statistics: differences of larger ones may overflow.
_LARGEST = float(np.finfo(np.float64).max) / 4


def preprocessing(
    dataset: Dataset, network: NetworkConfig, pixels: PixelsConfig | None = None
) -> tuple[Step, ...]:
    """The steps inside the graph.

    Pictures: as `pixels` says, or / 255, then mean and standard deviation for each channel.
    Tables: one `Encode`, with bins for a table network or an ensemble that has one.
    Raises DataError where `pixels` is for other channels.
    """
    if isinstance(dataset.input, TableInput):
        assert isinstance(dataset.train.raw, np.ndarray)
        return (table_encoding(dataset.input, dataset.train.raw, table_bins(network)),)
    if pixels is None:
        mean, std = _pixel_statistics(dataset)
        return (Scale(factor=1 / 255), Normalize(mean=mean, std=std))
    channels = dataset.input.channels
    if not len(pixels.mean) == len(pixels.std) == channels:
        raise DataError(
            f"data.pixels: expected mean and std of {channels} channels, found {len(pixels.mean)} "
            f"and {len(pixels.std)} values"
        )
    if pixels.order == "bgr" and channels != 3:
        raise DataError("data.pixels: order bgr is for pictures of 3 channels, found 1")
    order = (Reorder(channels=(2, 1, 0)),) if pixels.order == "bgr" else ()
    return (*order, Scale(factor=pixels.factor), Normalize(mean=pixels.mean, std=pixels.std))


def table_encoding(spec: TableInput, raw: np.ndarray, bins: int) -> Encode:
    """How each raw value becomes network input. raw: float64 [N, D] of the training part.

    Numbers: median for what is missing; center and scale are the median and the interquartile
    range / 1.349 (where that is 0, half the range). bins: at most so many, at quantiles.
    """
    inputs: list[NumberEncoding | CategoryEncoding] = []
    start = 0
    for column in spec.columns:
        for offset in range(column.width):
            values = raw[:, start + offset]
            if isinstance(column, BooleanColumn | CategoryColumn):
                inputs.append(_category(values))
            else:
                # The parts of a date are missing together.
                inputs.append(_number(values, bins, indicate=offset == 0))
        start += column.width
    return Encode(inputs=tuple(inputs))


def _category(values: np.ndarray) -> CategoryEncoding:
    codes = np.unique(np.where(np.isnan(values), -1.0, values))
    return CategoryEncoding(values=tuple(int(code) for code in codes))


def _number(values: np.ndarray, bins: int, *, indicate: bool) -> NumberEncoding:
    known = values[~np.isnan(values)].clip(-_LARGEST, _LARGEST)
    low, quarter, median, three_quarters, high = np.quantile(known, [0, 0.25, 0.5, 0.75, 1])
    # Of a normal distribution, its standard deviation.
    scale = (three_quarters - quarter) / 1.349
    # A constant's range is rounding, not zero.
    tiny = 1e-9 * max(abs(low), abs(high))
    if scale <= tiny:
        scale = (high - low) / 2
    if scale <= tiny or scale == 0:
        scale = 1.0
    return NumberEncoding(
        fill=float(median),
        center=float(median),
        scale=float(scale),
        edges=quantile_edges(known, bins),
        indicator=indicate and len(known) < len(values),
    )


def quantile_edges(values: np.ndarray, bins: int) -> tuple[float, ...]:
    """Rising edges of at most `bins` bins with about as many rows each; none for a constant.

    A value that many rows share counts for a tenth of a bin at most, so that the bins are left to
    the values beside it.
    """
    different, counts = np.unique(values, return_counts=True)
    if bins == 0 or len(different) < 2:
        return ()
    if len(different) <= bins + 1:
        return tuple(different.tolist())
    weights = np.minimum(counts, max(1.0, _SPIKE * len(values) / bins))
    share = np.cumsum(weights) / weights.sum()
    # What rounding leaves of 1 must not reach beyond the last value.
    chosen = np.searchsorted(share, np.linspace(0, 1, bins + 1)[1:] - 1e-9)
    return tuple(different[np.unique([0, *chosen.clip(max=len(different) - 1)])].tolist())


def _pixel_statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 for each channel, over the training part."""
    import torch

    assert isinstance(dataset.input, ImageInput)
    counts = np.zeros((dataset.input.channels, 256), dtype=np.int64)
    for raw, _ in Batches(dataset.train, torch.device("cpu")).all(4096):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(raw[:, channel].numpy().ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    std[std < 1e-6] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
