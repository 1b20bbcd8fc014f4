"""Held-out rows of the bundle to try a model with, and what a drawing must be like to suit it."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifacts.bundle import Golden
from artifacts.inputs import ImageInput

_MOST_EXAMPLES = 12
_MOST_LOOKED_AT = 512
# Larger pictures are no drawings.
_LARGEST_DRAWN = 64
# Grey levels from the background at which there is something.
_INK = 48


def choose_examples(golden: Golden) -> list[int]:
    """Up to 12 golden rows, by index: one of each label in turn; of many labels, some between the
    first and the last.

    By their true labels, or the answered ones where the rows are made up.
    """
    labels = np.where(golden.labels < 0, golden.probabilities.argmax(axis=1), golden.labels)
    # The how-manieth of its label each row is.
    order = np.argsort(labels, kind="stable")
    turn = np.empty(len(labels), dtype=np.int64)
    turn[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    in_turn = np.lexsort((labels, turn))
    firsts = int((turn == 0).sum())
    if firsts > _MOST_EXAMPLES:
        in_turn = in_turn[np.linspace(0, firsts - 1, _MOST_EXAMPLES).astype(np.int64)]
    chosen: list[int] = in_turn[:_MOST_EXAMPLES].tolist()
    return chosen


def true_label(golden: Golden, row: int) -> int | None:
    """The class of a golden row, None where it is made up."""
    label = int(golden.labels[row])
    return None if label < 0 else label


def drawing(golden: Golden, spec: ImageInput) -> dict[str, Any] | None:
    """How the examples are drawn, for drawings to be like them; None for what nobody draws.

    background, ink: grey levels, 0 to 255. height, width: what the things on the examples take up,
    of nearly all of them, as shares of the picture; top, left: of their middle.
    """
    if spec.channels != 1 or max(spec.height, spec.width) > _LARGEST_DRAWN:
        return None
    pictures = golden.raw[:_MOST_LOOKED_AT, 0].astype(np.int64)
    edges = [pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]]
    background = int(np.median(np.concatenate([edge.ravel() for edge in edges])))
    ink = 255 if background < 128 else 0
    found: np.ndarray = np.abs(pictures - background) >= _INK
    boxes = [_extent(np.any(found, axis=2)), _extent(np.any(found, axis=1))]
    sides = (spec.height, spec.width)
    sizes, middles = [], []
    for (first, last), side in zip(boxes, sides, strict=True):
        there = last > first
        size = (last - first)[there] / side
        sizes.append(round(float(np.quantile(size, 0.9)), 4) if there.any() else 0.8)
        middle = ((first + last) / 2)[there] / side
        middles.append(round(float(np.median(middle)), 4) if there.any() else 0.5)
    return {
        "background": background, "ink": ink,
        "height": sizes[0], "width": sizes[1], "top": middles[0], "left": middles[1],
    }  # fmt: skip


def _extent(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of bool [N, L]: the first that is true, and the one after the last; else 0, 0."""
    length = found.shape[1]
    any_found = found.any(axis=1)
    first = np.where(any_found, found.argmax(axis=1), 0)
    last = np.where(any_found, length - found[:, ::-1].argmax(axis=1), 0)
    return first, last
