"""Figures as text, with their intervals, and as small bars beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

from artifacts.inputs import ImageInput
from artifacts.manifest import Estimate, Manifest
from training.report.markup import Child, element, join

# What stands over a column, with its class where it is not "number".
Heading: TypeAlias = str | Markup | tuple[str, str]
_ON_ONE_PAGE, _SHORT, _FEW_LEFT = 18, 40, 5
# Shares nearer to none or all are not told apart from it.
_LEAST_SHARE = 1e-5
_QUOTED = re.compile(r"""('[^'\n]*'|"[^"\n]*")""")


def label(name: str) -> Markup:
    """A name from the data: text of either direction, which does not turn what stands around it.

    Where there is no room for it, it goes on below after one of its underscores.
    """
    first, *others = name.split("_")
    return element("bdi", first, [["_", element("wbr"), other] for other in others])


def code(text: str) -> Markup:
    """A block of code, in which a text of either direction stays within its quotation marks."""
    parts = _QUOTED.split(text)
    shown = [part if part.isascii() else element("bdi", part) for part in parts]
    return element("pre", shown, tabindex="0")


def short_label(name: str) -> Markup:
    """A name from the data where there is little room: its first 40 characters."""
    return label(short_text(name))


def short_text(name: str) -> str:
    """The first 40 characters of a name."""
    return name if len(name) <= _SHORT else f"{name[: _SHORT - 1]}…"


def rows_noun(manifest: Manifest, count: int = 2) -> str:
    """What a row is called."""
    noun = "picture" if isinstance(manifest.input, ImageInput) else "row"
    return noun if count == 1 else f"{noun}s"


def released(manifest: Manifest) -> Markup:
    """The day."""
    return element("time", manifest.created[:10])


def counted(count: int, noun: str) -> str:
    """1 row, 1,234 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share in percent, to a tenth; more where that would say all or none, and it is not."""
    if 0 < share < _LEAST_SHARE:
        return f"<{100 * _LEAST_SHARE:g}%"
    if 1 - _LEAST_SHARE < share < 1:
        return f">{100 * (1 - _LEAST_SHARE):g}%"
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if (float(text) not in (0, 100)) or share in (0, 1):
            break
    return f"{text.removesuffix('.0') if share in (0, 1) else text}%"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(f"{100 * difference:+.1f}")


def signed(text: str) -> str:
    """A number's text with a minus sign as printers have it, and none of either kind for 0."""
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def decimal(value: float) -> str:
    """Three digits that count, at least three after the point: 0.0123, 0.870, 2.303."""
    if value == 0:
        return "0"
    return f"{value:.{_places(value)}f}" if abs(value) >= 1e-4 else f"{value:.1e}"


def _places(value: float) -> int:
    """How many digits after the point `decimal` gives a number."""
    return 3 if abs(value) >= 0.1 else 2 - math.floor(math.log10(abs(value)))


def exponent(value: float) -> str:
    """A very small number: 3.8e-06, with a printer's minus sign, which ends no line; or 0."""
    return signed(f"{value:.1e}") if value else "0"


def size_text(size: int) -> str:
    """Bytes as people say them."""
    for unit, scale in (("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


def between(estimate: Estimate, *, shares: bool, joint: str = " to ") -> str:
    """An interval: 87.7 to 89.1, or 0.0250 to 0.1210, to the place to which its figure is given."""
    if shares:
        return f"{100 * estimate.low:.1f}{joint}{100 * estimate.high:.1f}"
    places = _places(max(abs(estimate.value or estimate.high), 1e-4))
    return f"{estimate.low:.{places}f}{joint}{estimate.high:.{places}f}"


def estimate_cell(
    estimate: Estimate | None, *, shares: bool = False, short: bool = False
) -> Markup:
    """A table's cell with a figure, its interval below; a dash where it is not defined.

    shares: in percent. short: three digits after the point, two of the interval.
    """
    if estimate is None:
        return element("td", "–", class_="number")
    value = percent(estimate.value) if shares else decimal(estimate.value)
    if short:
        value = f"{estimate.value:.3f}"
    ends = f"{estimate.low:.2f}–{estimate.high:.2f}"
    below = element("small", ends if short else between(estimate, shares=shares, joint="–"))
    return element("td", element("b", value), " ", below, class_="number")


def number_cell(value: str) -> Markup:
    """A table's cell with a number."""
    return element("td", value, class_="number")


def interval_bar(estimate: Estimate | None, class_: str = "", first: float = 0.0) -> Markup:
    """Where a share lies between `first` and 1, with its interval; its text stands beside it."""
    if estimate is None:
        return element("span", class_="bar")
    value, left, right = (
        100 * max(0.0, min(1.0, (share - first) / (1 - first)))
        for share in (estimate.value, estimate.low, estimate.high)
    )
    return element(
        "span",
        element("i", style=f"left:{left:.1f}%;width:{right - left:.1f}%"),
        element("b", style=f"left:{value:.1f}%"),
        class_=f"bar {class_}".strip(),
        aria_hidden="true",
    )


def share_bar(share: float) -> Markup:
    """A share as the length of a bar; the text beside it says the same."""
    width = f"width:{100 * max(0.0, min(1.0, share)):.1f}%"
    return element("span", element("i", style=width), class_="bar filled", aria_hidden="true")


def table(
    head: Sequence[Heading], rows: Sequence[Child], caption: str, class_: str | None = None
) -> Markup:
    """A table in a box of its own, in which it scrolls where the screen is too narrow.

    rows: of `td` elements, the first a `th`. caption: what it shows, above the box, so that it
    does not scroll with it.
    """
    named = [entry if isinstance(entry, tuple) else (entry, "number") for entry in head]
    cells = [
        element("th", text, scope="col", class_=class_ if number else None)
        for number, (text, class_) in enumerate(named)
    ]
    whole = element(
        "table",
        element("thead", element("tr", *cells)),
        element("tbody", rows),
        class_=class_,
        aria_label=caption,
    )
    # On paper a short one is not cut in two.
    fits = "scroll whole" if len(rows) <= _ON_ONE_PAGE else "scroll"
    box = element("div", whole, class_=fits, tabindex="0", role="region", aria_label=caption)
    return element("div", element("p", caption, class_="caption"), box)


def first_shown(count: int, most: int) -> int:
    """How many of `count` rows are shown: `most`, or all where only a few would be left."""
    return most if count > most + _FEW_LEFT else count


def folded_table(
    head: Sequence[Heading],
    rows: Sequence[Child],
    caption: str,
    *,
    shown: int,
    noun: str,
    rest: str,
    note: Child = None,
) -> Markup:
    """A table of the first `shown` rows, and one of the others folded away below it.

    noun: what the rows are. rest: the caption of the other table; note: what stands above that.
    """
    others = rows[shown:]
    folded = (
        more(f"The other {len(others)} {noun}", note, table(head, others, rest)) if others else None
    )
    return join(table(head, rows[:shown], caption), folded)


def row(name: Child, *cells: Child, class_: str | None = None) -> Markup:
    """A row of a table, by its name."""
    return element("tr", element("th", name, scope="row"), *cells, class_=class_)


def more(summary: str, *children: Child) -> Markup:
    """What is folded away on a screen, and open on paper."""
    return element("details", element("summary", summary), *children)


@dataclass(frozen=True)
class Section:
    """One of the page's sections, which its contents link to by name."""

    name: str
    title: str
    body: Markup


def section(name: str, title: str, *children: Child) -> Section:
    """A section under its heading."""
    heading = element("h2", title, id=f"{name}-title")
    body = element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")
    return Section(name, title, body)
