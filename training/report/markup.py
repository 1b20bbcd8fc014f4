"""Elements of HTML and SVG whose texts are escaped always.

Nothing else in this package writes a tag: a text that comes from data cannot become one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

# A text is escaped; None is left out; whatever is nested is taken in order.
Child: TypeAlias = str | int | Markup | Iterable["Child"] | None

_VOID = {"meta", "br", "img", "hr", "wbr"}
_EMPTY = {"circle", "line", "path", "polyline", "rect"}


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element. Attributes: `class_` is class, `aria_label` is aria-label; None leaves one out,
    True writes its name alone.
    """
    opening = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        opening.append(name if value is True else f'{name}="{escape(_number(value))}"')
    start = " ".join(opening)
    if tag in _EMPTY and not children:
        return Markup(f"<{start}/>")  # noqa: S704
    if tag in _VOID:
        assert not children
        return Markup(f"<{start}>")  # noqa: S704
    return Markup(f"<{start}>{join(*children)}</{tag}>")  # noqa: S704


def join(*children: Child) -> Markup:
    """The children one after the other."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str | int):
            parts.append(escape(child))
        else:
            parts.append(join(*child))
    return Markup("").join(parts)


def stylesheet(css: str) -> Markup:
    """A style element of our own CSS, in which nothing is escaped."""
    assert "<" not in css
    return Markup(f"<style>{css}</style>")  # noqa: S704


def document(title: str, css: str, *body: Child) -> str:
    """A whole page: one file that loads nothing."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        stylesheet(css),
    )
    page = element("html", head, "\n", element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _number(value: str | float | bool) -> str:
    """Coordinates to a tenth of a pixel: a page of them stays small."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
