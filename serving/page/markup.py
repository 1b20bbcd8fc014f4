"""Values into HTML: everything is escaped unless it is said to be markup."""

from __future__ import annotations

import json
from collections.abc import Iterable
from string import Template
from typing import Any

from markupsafe import Markup, escape

# What ends a script element, or a line in old JavaScript; JSON may write each of them so.
_IN_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def fill(template: str, **values: str) -> Markup:
    """The template with `$name` for each value, escaped for text and quoted attributes."""
    escaped = {name: escape(value) for name, value in values.items()}
    return Markup(Template(template).substitute(escaped))  # noqa: S704


def join(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("").join(parts)


def script_json(value: Any) -> Markup:
    """JSON for a script element, out of which no text in it can break."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Markup(written.translate(_IN_SCRIPT))  # noqa: S704
