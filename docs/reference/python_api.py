"""The public Python names, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

import artifacts

# Of the classes, what a caller uses; the rest is for the other rooms.
_MEMBERS = {
    "Predictor": ["predict", "run"],
    "Predictions": ["label"],
    "Bundle": [],
}
_ORDER = ["open_bundle", "Predictor", "Predictions", "read_bundle", "Bundle"]


def page() -> str:
    """`artifacts.__all__`, functions first, errors last."""
    names = [*_ORDER, *(name for name in artifacts.__all__ if name not in _ORDER)]
    lines = [
        "# Python",
        "",
        "```python",
        "from artifacts import open_bundle",
        "",
        'predictor = open_bundle("mine")',
        "```",
        "",
        "`artifacts` imports neither torch nor BentoML for this; the wheel `parityline` without "
        "extras is enough. What is not on this page may change.",
        "",
    ]
    for name in names:
        lines += _documented(name, getattr(artifacts, name), "##")
        for member in _MEMBERS.get(name, []):
            thing = getattr(getattr(artifacts, name), member)
            lines += _documented(f"{name}.{member}", thing, "###")
    return "\n".join(lines)


def _documented(name: str, thing: Any, level: str) -> list[str]:
    lines = [f"{level} {name}", ""]
    if not isinstance(thing, property):
        lines += ["```python", *_signature(name.rsplit(".", 1)[-1], thing), "```", ""]
    words = inspect.getdoc(thing) or ""
    # A paragraph that begins with "name:" is a list of what the names are.
    words = re.sub(r"(?m)^(\w+(?:, \w+)*): ", r"**\1**: ", words)
    return [*lines, re.sub(r"([.;:]) *\n(?=\*\*)", r"\1\n\n", words), ""]


def _signature(name: str, thing: Any) -> list[str]:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        bases = ", ".join(base.__name__ for base in thing.__bases__)
        return [f"class {name}({bases})"]
    if is_dataclass(thing):
        return [f"class {name}:", *(f"    {field.name}: {field.type}" for field in fields(thing))]
    parameters = list(inspect.signature(thing).parameters.values())
    answer = inspect.signature(thing).return_annotation
    texts, starred = [], False
    for parameter in parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            texts.append("*")
            starred = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        texts.append(f"{parameter.name}: {parameter.annotation}{default}")
    line = f"{name}({', '.join(texts)}) -> {answer}"
    if len(line) <= 88:
        return [line]
    return [f"{name}(", *(f"    {text}," for text in texts), f") -> {answer}"]
