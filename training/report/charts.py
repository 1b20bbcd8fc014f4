"""Charts as SVG inside the page: lines, points and bars, drawn for a width that a phone has.

Every chart has its words beside it; colours are of Okabe and Ito's palette, and no line differs
from another by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from artifacts.evidence import Curves
from artifacts.gate_report import DiffHistogram
from artifacts.manifest import Epoch, ReliabilityBin
from training.report.axes import WIDTH, Axis, Frame, axes, diagonal, even_tenth, square, x_name
from training.report.markup import Child, element

FEW_ROWS = 10
# More than any network begins with: of a training that went astray, and the rest is told apart on a
# logarithmic axis alone.
_MOST_LOSS = 50.0


@dataclass(frozen=True)
class Series:
    """One line. style: 1 is drawn through, 2 dashed. sizes: radii of dots at its points."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 1
    sizes: Sequence[float] | None = None


def line_chart(
    frame: Frame,
    series: Sequence[Series],
    alternative: str,
    *,
    marks: Sequence[Child] = (),
    point: Child = None,
) -> Markup:
    """`plot` with what the lines are called, and the words, below."""
    picture = plot(frame, series, alternative, marks=marks, point=point)
    return figure(picture, alternative, legend(series))


def plot(
    frame: Frame,
    series: Sequence[Series],
    alternative: str,
    *,
    marks: Sequence[Child] = (),
    point: Child = None,
) -> Markup:
    """Lines over a grid. alternative: the chart in words. marks, point: drawn below and above."""
    drawn: list[Child] = [axes(frame), marks]
    for line in series:
        places = [frame.place(x, y) for x, y in line.points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(element("polyline", points=joined, class_=f"line s{line.style}"))
        drawn += [
            element("circle", cx=round(x, 1), cy=round(y, 1), r=round(radius, 1),
                    class_=f"dot s{line.style}")
            for (x, y), radius in zip(places, line.sizes or (), strict=False)
        ]  # fmt: skip
    return _svg(frame.height, [drawn, point], alternative)


def figure(picture: Markup, words: Child, *keys: Child) -> Markup:
    """A picture, its key and what it shows in words."""
    return element("figure", picture, *keys, element("figcaption", words))


def legend(series: Sequence[Series]) -> Markup | None:
    """What each line is; None for a single one."""
    if len(series) < 2:
        return None
    keys = [
        element(
            "li",
            element(
                "svg",
                element("line", x1=0, x2=28, y1=6, y2=6, class_=f"line s{line.style}"),
                element("circle", cx=14, cy=6, r=4, class_=f"dot s{line.style}")
                if line.sizes
                else None,
                viewBox="0 0 28 12",
                width=28,
                height=12,
                aria_hidden="true",
            ),
            line.name,
        )
        for line in series
    ]
    return element("ul", keys, class_="legend")


def learning_curves(history: Sequence[Epoch], kept_epoch: int) -> list[Markup]:
    """Loss and accuracy by epoch, with the epoch whose weights are kept."""
    last, epochs = history[-1], Axis("epoch", 1, max(2, len(history)), whole=True)
    losses = [
        Series("training", [(r.epoch, r.train_loss) for r in history]),
        Series("validation", [(r.epoch, r.validation_loss) for r in history], 2),
    ]
    accuracies = [
        Series("training", [(r.epoch, r.train_accuracy) for r in history]),
        Series("validation", [(r.epoch, r.validation_accuracy) for r in history], 2),
    ]
    lowest = min(y for line in accuracies for _, y in line.points)
    kept = f"The weights of epoch {kept_epoch} are kept (dotted)."
    charts = []
    for frame, lines, words in (
        (
            Frame(epochs, _loss_axis(losses)),
            losses,
            f"Loss ends at {last.train_loss:.3f} in training, at {last.validation_loss:.3f} on the "
            f"validation part. {kept}",
        ),
        (
            Frame(epochs, Axis("accuracy", 0.9 if lowest > 0.9 else even_tenth(lowest), 1)),
            accuracies,
            f"Accuracy ends at {last.train_accuracy:.1%} in training, at "
            f"{last.validation_accuracy:.1%} on the validation part. {kept}",
        ),
    ):
        x, top = frame.place(kept_epoch, frame.y.high)
        bottom = frame.place(kept_epoch, frame.y.low)[1]
        mark = element("line", x1=x, x2=x, y1=top, y2=bottom, class_="guide")
        if len(history) == 1:
            lines = [Series(s.name, s.points, s.style, [3.5]) for s in lines]
        charts.append(line_chart(frame, lines, words, marks=[mark]))
    return charts


def _loss_axis(losses: Sequence[Series]) -> Axis:
    """From 0, or logarithmic where a loss is beyond all measure."""
    values = [y for line in losses for _, y in line.points]
    highest = max(values) or 1.0
    if highest <= _MOST_LOSS:
        return Axis("loss (nats)", 0.0, highest * 1.05)
    low = 10.0 ** math.floor(math.log10(max(min(values), 1e-3)))
    return Axis("loss (nats), logarithmic", low, 10.0 ** math.ceil(math.log10(highest)), log=True)


def known_bins(bins: Sequence[ReliabilityBin]) -> list[tuple[float, float, int]]:
    """Confidence, accuracy and rows of the bins with FEW_ROWS rows: of fewer, they are chance."""
    return [
        (entry.confidence, entry.accuracy, entry.rows)
        for entry in bins
        if entry.confidence is not None and entry.accuracy is not None and entry.rows >= FEW_ROWS
    ]


def reliability_diagram(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], words: str
) -> tuple[Markup, Markup | None]:
    """How often an answer is right against its probability, in bins; dots grow with their rows.

    after: with two bins or more to draw. Both axes begin at the last even tenth below all.
    Chart and legend.
    """
    rows = sum(entry.rows for entry in after)
    lines = []
    for name, bins, style in (("after", after, 1), ("before", before, 2)):
        known = known_bins(bins)
        if style == 2 and len(known) < 2:
            continue
        lines.append(
            Series(
                f"{name} calibration",
                [(confidence, accuracy) for confidence, accuracy, _ in known],
                style,
                [2 + 8 * math.sqrt(count / rows) for _, _, count in known] if style == 1 else None,
            )
        )
    if before == after:
        lines = [Series("as it is", lines[0].points, 1, lines[0].sizes)]
    lowest = min(value for line in lines for point in line.points for value in point)
    names = ("probability of the answer", "share that is right")
    frame = square(*names, first=even_tenth(lowest))
    return plot(frame, lines, words, marks=[diagonal(frame)]), legend(lines)


def roc_chart(curves: Curves, words: str, operating: tuple[float, float] | None) -> Markup:
    """True against false positive rate."""
    frame = square("false positive rate", "true positive rate (recall)")
    return line_chart(
        frame, [Series("ROC", curves.roc)], words, marks=[diagonal(frame)],
        point=_point(frame, operating),
    )  # fmt: skip


def precision_recall_chart(
    curves: Curves, words: str, operating: tuple[float, float] | None, share: float
) -> Markup:
    """Precision against recall; share: of the label among all rows, what chance would have."""
    frame = square("recall", "precision")
    (x1, y), (x2, _) = frame.place(0, share), frame.place(1, share)
    chance = element("line", x1=x1, x2=x2, y1=y, y2=y, class_="guide")
    return line_chart(
        frame, [Series("PR", curves.precision_recall)], words, marks=[chance],
        point=_point(frame, operating),
    )  # fmt: skip


def difference_histogram(histogram: DiffHistogram, name: str, words: str) -> Markup:
    """How many answers differ from eager's by how much, on a logarithmic scale from 0."""
    counts, edges = histogram.counts[name], histogram.edges
    height, total = 130, max(1, sum(counts))
    frame = Frame(
        Axis("largest difference of logits", 0, len(counts)),
        Axis("", 0.0, max(*counts, 1) / total), height,
    )  # fmt: skip
    drawn: list[Child] = []
    for place, count in enumerate(counts):
        if count:
            left, top = frame.place(place, count / total)
            right, bottom = frame.place(place + 1, 0)
            # One row of many thousands still shows.
            top = min(top, bottom - 1.5)
            drawn.append(
                element("rect", x=round(left + 0.75, 1), y=round(top, 1), class_="column",
                        width=round(right - left - 1.5, 1), height=round(bottom - top, 1))
            )  # fmt: skip
    (x1, base), (x2, _) = frame.place(0, 0), frame.place(len(counts), 0)
    drawn.append(element("line", x1=x1, x2=x2, y1=base, y2=base, class_="axis"))
    texts = [(0.5, "0")]
    texts += [
        (place + 1.0, f"1e{round(math.log10(edge))}")
        for place, edge in enumerate(edges)
        if abs(math.log10(edge) - round(math.log10(edge))) < 1e-6 and place
    ][1::2]
    for x, text in texts:
        drawn.append(
            element("text", text, x=round(frame.place(x, 0)[0], 1), y=base + 17,
                    text_anchor="middle")
        )  # fmt: skip
    drawn.append(x_name(frame))
    return figure(_svg(height, drawn, words), words)


def _svg(height: int, drawn: Child, alternative: str) -> Markup:
    return element(
        "svg", drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=alternative,
        class_="chart",
    )  # fmt: skip


def _point(frame: Frame, point: tuple[float, float] | None) -> Markup | None:
    if point is None:
        return None
    x, y = frame.place(*point)
    return element("circle", cx=x, cy=y, r=5, class_="point")
