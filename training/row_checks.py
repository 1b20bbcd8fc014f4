"""What can be seen wrong in the training rows themselves: labels, and input that is not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from artifacts.errors import DataError
from training.batches import Batches

# What torch and torchvision raise for tensors that do not fit.
MISFITS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64:
        raise DataError(f"preflight: expected labels of torch.int64, found {labels.dtype}")
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"preflight: row {row} of the training part: expected a label from 0 to "
            f"{num_classes - 1}, found {int(labels[row])} (labels out of range: {len(outside)})"
        )
    present = labels.unique().tolist()
    if len(present) < 2:
        raise DataError(
            f"preflight: expected training rows of at least two classes, found {len(labels)} rows "
            f"of the classes {present}"
        )


@torch.no_grad()
def preprocessed(preprocess: nn.Module, raw: Tensor) -> Tensor:
    try:
        inputs: Tensor = preprocess(raw)
    except MISFITS as error:
        raise DataError(
            f"preflight: the preprocessing cannot take {form(raw)}: {first_line(error)}"
        ) from error
    return inputs


@torch.no_grad()
def check_finite(preprocess: nn.Module, train: Batches, some: Tensor) -> None:
    """Every row's network input is finite; the first that is not is named.

    The preprocessing goes value by value and is monotone there, so it is enough to see what
    becomes of each value's least, greatest and missing. some: raw [n, ...], any rows.
    """
    at_once = max(1, 2**22 // max(1, some[0].numel()))
    if some.dtype == torch.uint8:
        extremes = torch.stack([torch.zeros_like(some[0]), torch.full_like(some[0], 255)])
    else:
        chunks = [_extremes(raw) for raw, _ in train.all(at_once)]
        extremes = _extremes(torch.cat(chunks))
    if preprocessed(preprocess, extremes).isfinite().all():
        return
    start = 0
    for raw, _ in train.all(min(at_once, train.answered_at_once)):
        inputs = preprocessed(preprocess, raw)
        places = (~inputs.isfinite()).nonzero()
        if len(places):
            row, *place = places[0].tolist()
            value = inputs[row][tuple(place)].item()
            raise DataError(
                f"preflight: row {start + row} of the training part: expected finite network "
                f"input, found {value:g} at {place}; raw, {_wild_values(raw[row])}"
            )
        start += len(raw)


def _extremes(raw: Tensor) -> Tensor:
    """Three rows: each value's least, its greatest, and NaN where it is missing in some row."""
    missing = raw.isnan()
    low = raw.masked_fill(missing, math.inf).amin(dim=0)
    high = raw.masked_fill(missing, -math.inf).amax(dim=0)
    # What is always missing has neither.
    never = missing.all(dim=0)
    low, high = (known.masked_fill(never, math.nan) for known in (low, high))
    return torch.stack([low, high, low.masked_fill(missing.any(dim=0), math.nan)])


def _wild_values(row: Tensor) -> str:
    places = (~row.isfinite()).nonzero().tolist()
    if not places:
        return f"it has {value_range(row)}"
    shown = ", ".join(f"{row[tuple(place)].item():g} at {place}" for place in places[:3])
    return shown + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def form(tensor: Tensor) -> str:
    """Such as "float32 [64, 10]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def value_range(values: Tensor) -> str:
    """Such as "values from 0 to 255, mean 72.9, standard deviation 90"; of known ones."""
    known = values[~values.isnan()].double()
    if not len(known):
        return "no values"
    deviation = known.std(correction=0).item()
    return (
        f"values from {known.min().item():.4g} to {known.max().item():.4g}, mean "
        f"{known.mean().item():.3g}, standard deviation {deviation:.3g}"
    )


def first_line(error: Exception) -> str:
    """What an error of torch's says, or its name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
