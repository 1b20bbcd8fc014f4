"""How good the answers are: the parts beside the baseline, and each label."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup

from artifacts.manifest import LabelMetrics, Manifest, Metrics
from training.report.figures import (
    Heading,
    Section,
    estimate_cell,
    first_shown,
    folded_table,
    interval_bar,
    label,
    number_cell,
    percent,
    points,
    row,
    rows_noun,
    section,
    short_label,
    table,
)
from training.report.markup import Child, element, join

_MOST_LABELS = 15


def quality(manifest: Manifest) -> Section:
    """The section about accuracy, log loss and areas, part by part."""
    parts = manifest.metrics
    areas = areas_of(parts.values())
    head: list[Heading] = ["part", "rows", "accuracy", ("0 to 100%", "wide")]
    head += ["log loss", *areas.values()]
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
        table(head, lines, caption, "estimates"),
    )


def areas_of(parts: Iterable[Metrics]) -> dict[str, str]:
    """Which areas under curves there are, by their names in a manifest: what each is called."""
    known = list(parts)
    return {
        name: title
        for name, title in (("auc", "AUC"), ("average_precision", "PR-AUC"))
        if any(getattr(part, name) is not None for part in known)
    }


def _part_row(name: str, part: Metrics, areas: Iterable[str], class_: str | None) -> Markup:
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
        name = element("q", short_label(majority(manifest)))
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
        if wrong == 0:
            return "The model makes no mistake."
        return f"The model makes {percent(1 - wrong / before)} fewer mistakes."
    said = "The model's answers are not surely better"
    if test.accuracy.high < baseline.accuracy.low:
        said = "The model is right less often"
    if test.log_loss.high < baseline.log_loss.low:
        return f"{said}, but its probabilities are better."
    return f"{said}."


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
    worst, noun = worst_first(test), rows_noun(manifest)
    lowest = min([figures.f1.low for _, figures in worst if figures.f1], default=0.0)
    first = math.floor(min(lowest, 0.9) * 10) / 10
    rows = [_label_row(name, figures, first) for name, figures in worst]
    absent = [label(name) for name, figures in test.per_label.items() if not figures.support]
    head: list[Heading] = ["label", f"test {noun}", "precision", "recall", "F1"]
    head.append((f"F1, {first:g} to 1", "wide"))
    caption = "Each label against the others on the test part, the lowest F1 first; 95% intervals."
    return section(
        "labels",
        "Each label",
        element(
            "p",
            f"Precision: of the {noun} that are answered with the label, the share that has it. "
            f"Recall: of the {noun} that have it, the share that is answered so. F1: their "
            "harmonic mean.",
        ),
        folded_table(
            head, rows, caption, shown=first_shown(len(rows), _MOST_LABELS), noun="labels",
            rest="The other labels, by F1.",
        ),
        element("p", f"Without test {noun}: ", Markup(", ").join(absent), ".") if absent else None,
    )  # fmt: skip


def _label_row(name: str, figures: LabelMetrics, first: float) -> Markup:
    return row(
        label(name),
        number_cell(f"{figures.support:,}"),
        estimate_cell(figures.precision, short=True),
        estimate_cell(figures.recall, short=True),
        estimate_cell(figures.f1, short=True),
        element("td", interval_bar(figures.f1, first=first), class_="wide"),
    )
