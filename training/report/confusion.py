"""What is mixed up: the confusion matrix, as numbers or as a picture, and the pairs of labels."""

from __future__ import annotations

import base64
import io
import math
import string
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from artifacts.estimates import MOST_CONFUSED
from artifacts.manifest import Manifest
from training.report.figures import (
    Heading,
    Section,
    counted,
    label,
    number_cell,
    percent,
    row,
    rows_noun,
    section,
    share_bar,
    short_text,
    table,
)
from training.report.markup import element, join

# Of Okabe and Ito's colours; seen on white and on black.
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)
_MOST_CELLS, _MOST_PAIRS = 25, 15
# Over a column of the confusion matrix: each label so long, or all of them together.
_SHORT, _SHORT_TOGETHER = 4, 24
# Columns that fit a page of paper at the size of its other tables.
_MOST_ON_PAPER = 12
# What the bars of a table of shares may end at.
_SCALES = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Mixup:
    """Test rows of one label that were answered as another; share: of the true label's rows."""

    count: int
    true: str
    answered: str
    share: float


def confusion_of(manifest: Manifest) -> np.ndarray | None:
    """The test part's confusion matrix, int64 [K, K], where it is kept."""
    test, classes = manifest.metrics.get("test"), len(manifest.labels)
    if test is None or test.confusion is None:
        return None
    if [len(counts) for counts in test.confusion] != [classes] * classes:
        return None
    return np.array(test.confusion, dtype=np.int64)


def mixups(manifest: Manifest) -> list[Mixup]:
    """Which labels were taken for which, most rows first."""
    matrix = confusion_of(manifest)
    if matrix is None:
        return []
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [
        Mixup(
            int(wrong[true, answered]), manifest.labels[true], manifest.labels[answered],
            float(wrong[true, answered] / matrix[true].sum()),
        )
        for true, answered in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]  # fmt: skip


def confusion_section(manifest: Manifest) -> Section | None:
    """The section about what is taken for what."""
    matrix, test = confusion_of(manifest), manifest.metrics.get("test")
    if test is None:
        return None
    title, noun = "What is mixed up", rows_noun(manifest)
    count = len(manifest.labels)
    if matrix is None and count <= MOST_CONFUSED:
        # Bundles of the first release kept none.
        return None
    if matrix is None:
        return section(
            "confusion",
            title,
            element("p", f"The confusion matrix of {count} labels was not kept: they are many."),
        )
    found = mixups(manifest)
    wrong = int(matrix.sum() - np.trace(matrix))
    said = (
        f"{wrong:,} of {test.rows:,} test {noun} are answered wrongly."
        if wrong
        else f"No test {rows_noun(manifest, 1)} of {test.rows:,} is answered wrongly."
    )
    many = len(manifest.labels) > _MOST_CELLS
    body = [element("p", said), _heat(matrix, manifest) if many else _counts(matrix, manifest)]
    if found and len(manifest.labels) > 2:
        body.append(_pairs(found, noun))
    return section("confusion", title, *body)


def _pairs(found: list[Mixup], noun: str) -> Markup:
    largest = max(entry.share for entry in found[:_MOST_PAIRS])
    scale = next(scale for scale in _SCALES if scale >= largest)
    rows = [
        element(
            "tr",
            element("th", label(entry.true), scope="row"),
            element("td", label(entry.answered), class_="name"),
            number_cell(f"{entry.count:,}"),
            number_cell(percent(entry.share)),
            element("td", share_bar(entry.share / scale), class_="wide"),
        )
        for entry in found
    ]
    head: list[Heading] = ["true label", ("answered as", "text"), noun]
    head += ["of its label", (f"0 to {100 * scale:g}%", "wide")]
    caption = "The pairs that are mixed up most often."
    rest = found[_MOST_PAIRS:]
    folded = None
    if rest:
        others = sum(entry.count for entry in rest)
        pairs, rows_left = counted(len(rest), "more pair"), counted(others, noun.removesuffix("s"))
        folded = element("p", f"{pairs}, with {rows_left} in all.")
    return join(table(head, rows[:_MOST_PAIRS], caption, "pairs"), folded)


def _counts(matrix: np.ndarray, manifest: Manifest) -> Markup:
    """The matrix with a number in each cell; a letter stands for a label that is long."""
    lengths = [len(name) for name in manifest.labels]
    short = max(lengths) <= _SHORT or sum(lengths) <= _SHORT_TOGETHER
    keys = manifest.labels if short else tuple(string.ascii_uppercase[: len(matrix)])
    noun = rows_noun(manifest)
    totals = np.maximum(matrix.sum(axis=1), 1)
    rows = []
    for number, (name, counts) in enumerate(zip(manifest.labels, matrix.tolist(), strict=True)):
        cells = [
            element(
                "td",
                f"{count:,}" if count else element("span", "0", class_="none"),
                class_="hit" if number == other else "miss",
                # A few rows of many must still be seen.
                style=f"--w:{12 + 38 * math.sqrt(count / totals[number]):.0f}%" if count else None,
            )
            for other, count in enumerate(counts)
        ]
        key = None if short else element("span", keys[number], class_="key")
        rows.append(row(join(key, " ", label(name)), cells))
    caption = (
        f"Test {noun}, counted: true labels down, answers across; the diagonal is right. The "
        f"stronger the colour, the larger the share of the true label's {noun}."
    )
    class_ = "confusion" if short else "confusion keyed"
    if len(matrix) > _MOST_ON_PAPER:
        class_ += " dense"
    corner = element("span", "true ↓", element("br"), "answered →", class_="corner")
    return table([corner, *map(label, keys)], rows, caption, class_)


def _heat(matrix: np.ndarray, manifest: Manifest) -> Markup:
    """The matrix as a picture of one pixel a cell, as opaque as its share of the true label."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*matrix.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _WRONG
    pixels[np.eye(len(matrix), dtype=bool), :3] = _RIGHT
    # A few rows of many must still be seen.
    pixels[..., 3] = np.where(shares > 0, 90 + 165 * np.sqrt(shares), 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    first, last = short_text(manifest.labels[0]), short_text(manifest.labels[-1])
    words = (
        f"{len(matrix)} labels down, in the manifest's order from “{first}” to “{last}”, their "
        "answers across in the same order. On the diagonal an answer is right; the stronger the "
        f"colour, the larger the share of the true label's {rows_noun(manifest)}."
    )
    return element(
        "figure",
        element("img", src=source, alt=words, class_="heat"),
        element("figcaption", words),
    )
