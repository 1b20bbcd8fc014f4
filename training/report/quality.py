"""How good the answers are: the parts beside the baseline, each label, and what is mixed up."""

from __future__ import annotations

import base64
import io
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from artifacts.estimates import MOST_CONFUSED
from artifacts.manifest import LabelMetrics, Manifest, Metrics
from training.report.figures import (
    Heading,
    Section,
    estimate_cell,
    interval_bar,
    label,
    more,
    number_cell,
    percent,
    points,
    row,
    rows_noun,
    section,
    share_bar,
    table,
)
from training.report.markup import Child, element, join

# Of Okabe and Ito's colours; seen on white and on black.
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)
_MOST_LABELS, _MOST_CELLS, _MOST_PAIRS, _SHORT = 15, 25, 15, 4


@dataclass(frozen=True)
class Mixup:
    """Test rows of one label that were answered as another; share: of the true label's rows."""

    count: int
    true: str
    answered: str
    share: float


def quality(manifest: Manifest) -> Section:
    """The section about accuracy, log loss and areas, part by part."""
    parts = manifest.metrics
    areas = [name for name in ("auc", "average_precision") if any(
        getattr(part, name) is not None for part in parts.values()
    )]  # fmt: skip
    names = {"auc": "AUC", "average_precision": "PR-AUC"}
    head: list[Heading] = ["part", "rows", "accuracy", ("0 to 100%", "wide")]
    head += ["log loss", *(names[name] for name in areas)]
    lines = []
    if manifest.baseline is not None:
        lines.append(_part_row("without a model", manifest.baseline, areas, "quiet"))
    for name in ("train", "validation", "test"):
        if name in parts:
            class_ = "strong" if name == "test" else None
            lines.append(_part_row(name, parts[name], areas, class_))
    caption = "Each part of the data, with 95% intervals. The test part was used once, at the end."
    return section(
        "quality",
        "How good it is",
        element("ul", [element("li", line) for line in quality_lines(manifest)], class_="said"),
        table(head, lines, caption),
    )


def _part_row(name: str, part: Metrics, areas: Sequence[str], class_: str | None) -> Markup:
    return row(
        name,
        number_cell(f"{part.rows:,}"),
        estimate_cell(part.accuracy, shares=True),
        element("td", interval_bar(part.accuracy), class_="wide"),
        estimate_cell(part.log_loss),
        [estimate_cell(getattr(part, area)) for area in areas],
        class_=class_,
    )


def quality_lines(manifest: Manifest) -> list[Child]:
    """The baseline and the gap, in words."""
    lines: list[Child] = []
    test, baseline = manifest.metrics.get("test"), manifest.baseline
    if test is not None and baseline is not None:
        said = f" each time, {percent(baseline.accuracy.value)} would be right. "
        name = element("q", label(majority(manifest)))
        lines.append(join("Without a model, answering ", name, said, _beside(test, baseline)))
    if manifest.verdict is not None:
        gap = manifest.verdict.gap
        figures = f"{points(gap.value)} points [{points(gap.low)}, {points(gap.high)}]"
        said = "no more than chance would make it"
        if gap.low > 0:
            said = "some of what it knows was learned by heart"
        elif gap.high < 0:
            said = "the test part is the easier one"
        lines.append(
            f"Accuracy on the training part less that on the test part: {figures}, {said}."
        )
    if manifest.threshold != 0.5:
        lines.append(
            join(
                element("q", label(manifest.labels[1])),
                f" is answered where its probability is above {manifest.threshold:g}.",
            )
        )
    return lines


def _beside(test: Metrics, baseline: Metrics) -> str:
    if test.accuracy.low > baseline.accuracy.high:
        wrong, before = 1 - test.accuracy.value, 1 - baseline.accuracy.value
        return f"The model makes {percent(1 - wrong / before)} fewer mistakes."
    if test.log_loss.high < baseline.log_loss.low:
        return "The model's answers are not surely better, but its probabilities are."
    return "The model's answers are not surely better."


def majority(manifest: Manifest) -> str:
    """The label that the baseline answers: the most frequent one of the training part."""
    train = manifest.metrics.get("train")
    counts = dict(manifest.data.label_counts)
    if train is not None and train.per_label:
        counts = {name: figures.support for name, figures in train.per_label.items()}
    return max(manifest.labels, key=lambda name: counts.get(name, 0))


def worst_first(test: Metrics) -> list[tuple[str, LabelMetrics]]:
    """The labels that have rows, those with the lowest F1 first."""
    known = [(name, figures) for name, figures in test.per_label.items() if figures.support]
    return sorted(known, key=lambda entry: entry[1].f1.value if entry[1].f1 else 0.0)


def labels_section(manifest: Manifest) -> Section | None:
    """The section about each label."""
    test = manifest.metrics.get("test")
    if test is None or not test.per_label:
        return None
    worst = worst_first(test)
    lowest = min([figures.f1.low for _, figures in worst if figures.f1], default=0.0)
    first = math.floor(min(lowest, 0.9) * 10) / 10
    rows = [_label_row(name, figures, first) for name, figures in worst]
    absent = [name for name, figures in test.per_label.items() if not figures.support]
    head: list[Heading] = ["label", "test rows", "precision", "recall", "F1"]
    head.append((f"F1, {first:g} to 1", "wide"))
    shown = _MOST_LABELS if len(rows) > _MOST_LABELS + 5 else len(rows)
    caption = "Each label against the others on the test part, the lowest F1 first; 95% intervals."
    rest = None
    if shown < len(rows):
        rest = more(
            f"The other {len(rows) - shown} labels",
            table(head, rows[shown:], "The other labels, by F1."),
        )
    return section(
        "labels",
        "Each label",
        element(
            "p",
            "Precision: of the rows that are answered with the label, the share that has it. "
            "Recall: of the rows that have it, the share that is answered so. F1: their harmonic "
            "mean.",
        ),
        table(head, rows[:shown], caption),
        rest,
        element("p", "Without a test row: ", ", ".join(absent), ".") if absent else None,
    )


def _label_row(name: str, figures: LabelMetrics, first: float) -> Markup:
    return row(
        label(name),
        number_cell(f"{figures.support:,}"),
        estimate_cell(figures.precision, short=True),
        estimate_cell(figures.recall, short=True),
        estimate_cell(figures.f1, short=True),
        element("td", interval_bar(figures.f1, first=first), class_="wide"),
    )


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
    rows = [
        element(
            "tr",
            element("th", label(entry.true), scope="row"),
            element("td", label(entry.answered), class_="name"),
            number_cell(f"{entry.count:,}"),
            number_cell(percent(entry.share)),
            element("td", share_bar(entry.share), class_="wide"),
        )
        for entry in found
    ]
    head: list[Heading] = ["true label", ("answered as", "text"), noun]
    head += ["of its label", ("0 to 100%", "wide")]
    caption = "The pairs that are mixed up most often."
    rest = found[_MOST_PAIRS:]
    folded = None
    if rest:
        others = sum(entry.count for entry in rest)
        folded = element("p", f"{len(rest):,} more pairs, with {others:,} {noun} in all.")
    return join(table(head, rows[:_MOST_PAIRS], caption, "pairs"), folded)


def _counts(matrix: np.ndarray, manifest: Manifest) -> Markup:
    """The matrix with a number in each cell; long labels stand for columns by a letter."""
    short = all(len(name) <= _SHORT for name in manifest.labels)
    letters = string.ascii_uppercase
    keys = manifest.labels if short else tuple(letters[: len(matrix)])
    totals = np.maximum(matrix.sum(axis=1), 1)
    rows = []
    for number, (name, counts) in enumerate(zip(manifest.labels, matrix.tolist(), strict=True)):
        cells = [
            element(
                "td",
                f"{count:,}" if count else element("span", "0", class_="none"),
                class_="hit" if number == other else "miss",
                style=f"--w:{45 * math.sqrt(count / totals[number]):.0f}%" if count else None,
            )
            for other, count in enumerate(counts)
        ]
        key = None if short else element("span", keys[number], class_="key")
        rows.append(row(join(key, " ", label(name)), cells))
    caption = (
        "Test rows, counted: true labels down, answers across; the diagonal is right. The "
        "stronger the colour, the larger the share of the true label's rows."
    )
    corner = element("span", "true ↓", element("br"), "answered →", class_="corner")
    return table([corner, *map(label, keys)], rows, caption, "confusion")


def _heat(matrix: np.ndarray, manifest: Manifest) -> Markup:
    """The matrix as a picture of one pixel a cell, as opaque as its share of the true label."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*matrix.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _WRONG
    pixels[np.eye(len(matrix), dtype=bool), :3] = _RIGHT
    # A few rows of many must still be seen.
    pixels[..., 3] = np.where(shares > 0, 40 + 215 * np.sqrt(shares), 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    words = (
        f"{len(matrix)} labels down, in the manifest's order, their answers across in the same "
        "order. On the diagonal an answer is right; the stronger the colour, the larger the share "
        "of the true label's rows."
    )
    return element(
        "figure",
        element("img", src=source, alt=words, class_="heat"),
        element("figcaption", words),
    )
