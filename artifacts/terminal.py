"""What a command says: lines as they are, one JSON document, and more where a person looks on.

`NO_COLOR`, `TERM=dumb` and `COLUMNS` are heeded, by rich and by what is here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# A label or a path may hold what would move the cursor, or worse; a line is to be one line.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_FACT = re.compile(r"([a-z][a-z ]{0,11}): (.+)")
_INDENT = 13


def open_console(*, stderr: bool = False) -> Console:
    """Rich's console, on which text is text: no markup of names, no pictures between colons."""
    from rich.console import Console

    return Console(stderr=stderr, emoji=False, highlight=False, markup=False)


def moves(console: Console) -> bool:
    """Whether a line on it can be written over: a terminal, and not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def say(line: str, *, stderr: bool = False) -> None:
    """One line as it is, however long."""
    print(printable(line), file=sys.stderr if stderr else sys.stdout, flush=True)


def tell(console: Console, line: str) -> None:
    """One line of a run. On a terminal what it is about stands out, and the rest is wrapped."""
    line = printable(line)
    found = _FACT.fullmatch(line) if moves(console) else None
    if found is None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    for number, text in enumerate(_wrapped(found[2], console.width - _INDENT)):
        console.print(f"{'' if number else found[1]:<{_INDENT}}", style="cyan", end="")
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def say_entries(entries: Mapping[str, str]) -> None:
    """A line for each, its name and then its text, which is wrapped on a terminal."""
    indent = max(map(len, entries)) + 2
    room = shutil.get_terminal_size().columns - indent if is_terminal() else None
    for name, text in entries.items():
        lines = [text] if room is None else _wrapped(text, room)
        for number, line in enumerate(lines):
            say(f"{'' if number else name:<{indent}}{line}")


def _wrapped(text: str, width: int) -> list[str]:
    # No word is broken: a path or a reference is copied from here.
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)


def busy(console: Console, what: str) -> AbstractContextManager[object]:
    """Says what it is that takes a while, as long as it does, where a person waits for it."""
    return console.status(what) if moves(console) else nullcontext()


def say_json(document: Any) -> None:
    """The one document of a command with --json, on standard output."""
    # ASCII: valid whatever the encoding of what reads it.
    print(json.dumps(document, indent=2), flush=True)


def say_error(message: str) -> None:
    """What went wrong, on standard error; "error" is red where there is colour."""
    # A few of our messages are lists of lines.
    first, *rest = message.split("\n")
    print(f"{styled('error:', 'red', sys.stderr)} {printable(first)}", file=sys.stderr)
    for line in rest:
        say(line, stderr=True)


def styled(text: str, colour: str, stream: TextIO) -> str:
    """Bold text in a colour of typer's, where the stream is a terminal that is to have colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not stream.isatty():
        return text
    import typer

    return typer.style(text, fg=colour or None, bold=True)


def printable(text: str) -> str:
    r"""The text with control characters as Python writes them, such as \x1b; tabs stay."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
