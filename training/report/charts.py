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
from training.report.markup import Child, element

FEW_ROWS = 10
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 380, 52, 12, 10, 38


@dataclass(frozen=True)
class Series:
    """One line. style: 1 is drawn through, 2 dashed. sizes: radii of dots at its points."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 1
    sizes: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """A range and what it is called."""

    name: str
    low: float
    high: float
    whole: bool = False

    def ticks(self) -> list[float]:
        """About four round numbers within the range."""
        span = self.high - self.low
        raw = span / 4
        scale = 10.0 ** math.floor(math.log10(raw))
        step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.99)
        if self.whole:
            step = max(1.0, float(round(step)))
        first = math.ceil(self.low / step - 1e-9)
        return [step * count for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Frame:
    """Where values lie on a chart."""

    x: Axis
    y: Axis
    height: int = 250

    def place(self, x: float, y: float) -> tuple[float, float]:
        """In the picture's units."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * across,
            _TOP + (self.height - _TOP - _BOTTOM) * (1 - up),
        )


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
    drawn: list[Child] = [_axes(frame), marks]
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
    highest = max(y for line in losses for _, y in line.points) or 1.0
    lowest = min(y for line in accuracies for _, y in line.points)
    kept = f"The weights of epoch {kept_epoch} are kept (dotted)."
    charts = []
    for frame, lines, words in (
        (
            Frame(epochs, Axis("loss (nats)", 0.0, highest * 1.05)),
            losses,
            f"Loss ends at {last.train_loss:.3f} in training, at {last.validation_loss:.3f} on the "
            f"validation part. {kept}",
        ),
        (
            Frame(epochs, Axis("accuracy", math.floor(lowest * 10) / 10 if lowest < 1 else 0.9, 1)),
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


def reliability_diagram(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], words: str
) -> tuple[Markup, Markup | None]:
    """How often an answer is right against its probability, in bins; dots grow with their rows.

    Bins of fewer than FEW_ROWS rows are left out: their share is chance. Chart and legend.
    """
    frame = _unit_square("probability of the answer", "share that is right")
    rows = sum(entry.rows for entry in after)
    lines = []
    for name, bins, style in (("after", after, 1), ("before", before, 2)):
        known = [
            (entry.confidence, entry.accuracy, entry.rows)
            for entry in bins
            if entry.confidence is not None
            and entry.accuracy is not None
            and entry.rows >= FEW_ROWS
        ]
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
    return plot(frame, lines, words, marks=[_diagonal(frame)]), legend(lines)


def roc_chart(curves: Curves, words: str, operating: tuple[float, float] | None) -> Markup:
    """True against false positive rate."""
    frame = _unit_square("false positive rate", "true positive rate (recall)")
    return line_chart(
        frame, [Series("ROC", curves.roc)], words, marks=[_diagonal(frame)],
        point=_point(frame, operating),
    )  # fmt: skip


def precision_recall_chart(
    curves: Curves, words: str, operating: tuple[float, float] | None, share: float
) -> Markup:
    """Precision against recall; share: of the label among all rows, what chance would have."""
    frame = _unit_square("recall", "precision")
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
        Axis("largest difference of logits", 0, len(counts)), Axis("", 0.0, max(counts) / total),
        height,
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
            element("text", text, x=round(frame.place(x, 0)[0], 1), y=base + 14,
                    text_anchor="middle")
        )  # fmt: skip
    drawn.append(_x_name(frame))
    return figure(_svg(height, drawn, words), words)


def _svg(height: int, drawn: Child, alternative: str) -> Markup:
    return element(
        "svg", drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=alternative,
        class_="chart",
    )  # fmt: skip


def _axes(frame: Frame) -> Markup:
    drawn: list[Child] = []
    for tick in frame.y.ticks():
        (x1, y), (x2, _) = frame.place(frame.x.low, tick), frame.place(frame.x.high, tick)
        drawn.append(element("line", x1=x1, x2=x2, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", f"{tick:g}", x=x1 - 6, y=y + 4, text_anchor="end"))
    for tick in frame.x.ticks():
        x, bottom = frame.place(tick, frame.y.low)
        drawn.append(element("text", f"{tick:g}", x=x, y=bottom + 16, text_anchor="middle"))
    (x1, y), (x2, _) = (
        frame.place(frame.x.low, frame.y.low), frame.place(frame.x.high, frame.y.low)
    )  # fmt: skip
    drawn.append(element("line", x1=x1, x2=x2, y1=y, y2=y, class_="axis"))
    drawn.append(_x_name(frame))
    middle = frame.place(frame.x.low, (frame.y.low + frame.y.high) / 2)[1]
    drawn.append(
        element("text", frame.y.name, transform=f"translate(12 {middle:.1f}) rotate(-90)",
                text_anchor="middle")
    )  # fmt: skip
    return element("g", drawn)


def _x_name(frame: Frame) -> Markup:
    middle = frame.place((frame.x.low + frame.x.high) / 2, frame.y.low)[0]
    return element("text", frame.x.name, x=middle, y=frame.height - 4, text_anchor="middle")


def _unit_square(x: str, y: str) -> Frame:
    return Frame(Axis(x, 0.0, 1.0), Axis(y, 0.0, 1.0), 320)


def _diagonal(frame: Frame) -> Markup:
    (x1, y1), (x2, y2) = frame.place(0, 0), frame.place(1, 1)
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="guide")


def _point(frame: Frame, point: tuple[float, float] | None) -> Markup | None:
    if point is None:
        return None
    x, y = frame.place(*point)
    return element("circle", cx=x, cy=y, r=5, class_="point")
