"""What the evidence shows: the most confident mistakes, and what the answers depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from artifacts.evidence import CellValue, ColumnImportance, Evidence, Mistake, Spread
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from training.report.figures import (
    Heading,
    Section,
    decimal,
    first_shown,
    folded_table,
    label,
    more,
    percent,
    points,
    row,
    rows_noun,
    section,
    signed,
)
from training.report.markup import Child, element, join

_FEWEST_COLUMNS, _MOST_COLUMNS, _FIRST_CELLS, _FIRST_ROWS = 5, 20, 8, 6
# Of the largest rise of the loss: what has less is folded away.
_LEAST_FELT = 0.01


def mistakes(manifest: Manifest, evidence: Evidence | None) -> Section | None:
    """The section about the wrong answers of which the model was most sure."""
    if evidence is None:
        return None
    title = "Its most confident mistakes"
    if evidence.mistakes is None:
        said = (
            "Left out: the rows of this model's data may not leave the machine that it was trained "
            "on (export.golden = synthetic)."
        )
        return section("mistakes", title, element("p", said))
    if not evidence.mistakes:
        noun = rows_noun(manifest, 1)
        return section("mistakes", title, element("p", f"None: no test {noun} was missed."))
    words = (
        "The wrong answers of the test part of which it was most sure, with the probabilities that "
        "it gave to its answer and to the true label. Some of these labels may themselves be wrong."
    )
    pictures = isinstance(manifest.input, ImageInput)
    if not pictures:
        words += " Of each row, the columns that matter most."
    draw = _picture_card if pictures else _row_card
    cards = [draw(manifest, mistake) for mistake in evidence.mistakes]
    class_, shown = ("pictures", len(cards)) if pictures else ("rows", _FIRST_ROWS)
    rest = cards[shown:]
    return section(
        "mistakes",
        title,
        element("p", words),
        element("div", cards[:shown], class_=class_),
        more(f"The other {len(rest)}", element("div", rest, class_=class_)) if rest else None,
    )


def _said(manifest: Manifest, mistake: Mistake) -> Markup:
    lines = (
        ("answered", mistake.answer, mistake.probability),
        ("is", mistake.label, mistake.of_label),
    )
    return element(
        "dl",
        [
            element(
                "div",
                element("dt", said),
                " ",
                element("dd", label(manifest.labels[index]), " ",
                        element("span", f"({percent(probability)})", class_="share")),
            )
            for said, index, probability in lines
        ],
        class_="said-is",
    )  # fmt: skip


def _picture_card(manifest: Manifest, mistake: Mistake) -> Markup:
    alternative = (
        f"Test picture {mistake.row}: {manifest.labels[mistake.label]}, answered "
        f"{manifest.labels[mistake.answer]}"
    )
    small = isinstance(manifest.input, ImageInput) and manifest.input.width < 64
    picture = element(
        "img", src=f"data:image/png;base64,{mistake.picture}", alt=alternative,
        class_="pixels" if small else None,
    )  # fmt: skip
    number = element("small", f"test picture {mistake.row}")
    return element("figure", picture, element("figcaption", _said(manifest, mistake), number))


def _row_card(manifest: Manifest, mistake: Mistake) -> Markup:
    cells = list((mistake.cells or {}).items())
    shown = len(cells) if len(cells) <= _FIRST_CELLS + 2 else _FIRST_CELLS
    rest = cells[shown:]
    return element(
        "article",
        _said(manifest, mistake),
        _cells(cells[:shown]),
        more(f"{len(rest)} more columns", _cells(rest)) if rest else None,
        element("small", f"test row {mistake.row}"),
    )


def _cells(cells: Sequence[tuple[str, CellValue]]) -> Markup:
    return element(
        "dl",
        [join(element("dt", label(name)), element("dd", _cell(value))) for name, value in cells],
        class_="cells",
    )


def _cell(value: CellValue) -> Child:
    if value is None:
        return element("i", "missing")
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else label(value)


def importance(evidence: Evidence | None) -> Section | None:
    """The section about a table's columns: what is lost without each of them."""
    if evidence is None or not evidence.importance:
        return None
    entries = evidence.importance
    first, last = entries[0], entries[-1]
    largest = max(0.0, *(entry.log_loss.high for entry in entries)) or 1.0
    felt = sum(entry.log_loss.mean > _LEAST_FELT * largest for entry in entries)
    shown = first_shown(len(entries), min(max(felt, _FEWEST_COLUMNS), _MOST_COLUMNS))
    # Of many columns and a large model most are looked at less closely: they stand below.
    closely = [(entry.rows, entry.shuffles) == (first.rows, first.shuffles) for entry in entries]
    shown = min(shown, closely.count(True))
    words = (
        f"Each column's cells are shuffled among {first.rows:,} test rows, {first.shuffles} times, "
        "and the rows answered anew: the more the log loss rises, the more the answers depend on "
        "that column. Columns that say the same stand in for each other, and then each seems to "
        "matter less than both."
    )
    note, less = None, closely.count(False)
    if less:
        times = "once" if last.shuffles == 1 else f"{last.shuffles} times"
        which = f"The last {less:,} are looked at with {last.rows:,} rows, {times}."
        note = element("p", which, class_="note")
    head: list[Heading] = [
        "column",
        (f"0 to {decimal(largest)} nats", "wide"),
        "rise of log loss",
        "accuracy lost, points",
    ]
    return section(
        "importance",
        "What its answers depend on",
        element("p", words),
        folded_table(
            head, _importances(entries, largest),
            "Mean, smallest and largest over the shuffles; what matters most first.",
            shown=shown, noun="columns", rest="The other columns.", note=note,
        ),
    )  # fmt: skip


def _importances(entries: Sequence[ColumnImportance], largest: float) -> list[Markup]:
    # All to the same place, so that they can be compared down the column.
    digits = max(2, 2 - math.floor(math.log10(largest)))

    def loss(value: float) -> str:
        return signed(f"{value:.{digits}f}")

    return [
        row(
            label(entry.column),
            element("td", _bar(entry.log_loss, largest), class_="wide"),
            _spread_cell(entry.log_loss, loss),
            _spread_cell(entry.accuracy, points),
        )
        for entry in entries
    ]


def _spread_cell(spread: Spread, said: Callable[[float], str]) -> Markup:
    below = None
    if spread.low != spread.high:
        below = element("small", f"{said(spread.low)} to {said(spread.high)}")
    return element("td", element("b", said(spread.mean)), " ", below, class_="number")


def _bar(spread: Spread, largest: float) -> Markup:
    def place(value: float) -> float:
        return 100 * max(0.0, min(1.0, value / largest)) if largest > 0 else 0.0

    low, high = place(spread.low), place(spread.high)
    return element(
        "span",
        element("i", style=f"width:{place(spread.mean):.1f}%"),
        element("u", style=f"left:{low:.1f}%;width:{high - low:.1f}%") if high > low else None,
        class_="bar filled",
        aria_hidden="true",
    )
