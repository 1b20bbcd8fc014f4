"""What docstrings say of each field, and Markdown tables of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any


def field_words(documented: type, fields: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A docstring as what it says of the whole, and of each field.

    Of fields speaks a sentence that begins with the names of some and a colon ("low, high: what
    they are."), and all that follows up to the next such sentence or the paragraph's end.
    """
    one = "|".join(fields)
    about: list[str] = []
    words: dict[str, str] = {}
    for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
        text = " ".join(paragraph.split())
        before, *pieces = re.split(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ", text)
        about.append(before.strip())
        for names, said in zip(pieces[::2], pieces[1::2], strict=True):
            said = said.strip().rstrip(";")
            for name in names.split(", "):
                words[name] = said[0].upper() + said[1:]
    return "\n\n".join(filter(None, about)), words


def cell(text: Any) -> str:
    """Text for a table's cell."""
    return " ".join(str(text).split()).replace("|", r"\|").replace("<", "&lt;")


def code(text: Any) -> str:
    """As code in a table's cell; nothing for nothing."""
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; cells are escaped already."""
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
