"""What a shell offers when Tab is pressed. Nothing heavy is imported: it is done in an instant."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Callable, MutableMapping

from artifacts.errors import ParitylineError
from artifacts.shelves import list_bundles, promoted_version, store_path

VARIABLE = "_PARITYLINE_COMPLETE"
# Where bash ends a word, though a shell's user does not: NAME@VERSION, KEY=VALUE.
_BREAKS = ("@", "=")


def complete_bundle(incomplete: str) -> list[tuple[str, str]]:
    """The store's names; with the versions of a name as soon as it is the only one meant."""
    try:
        bundles = list_bundles(store_path())
        name, at, _ = incomplete.partition("@")
        meant = [each for each in bundles if each == name or (not at and each.startswith(name))]
        found = [] if at else [(each, _promoted(each)) for each in meant]
        return found + (_versions(meant[0], bundles) if len(meant) == 1 else [])
    except (ParitylineError, OSError):
        return []


def complete_version(incomplete: str) -> list[tuple[str, str]]:
    """NAME@VERSION of each version in the store."""
    try:
        bundles = list_bundles(store_path())
        return [
            entry
            for name in bundles
            if name.startswith(incomplete.partition("@")[0])
            for entry in _versions(name, bundles)
        ]
    except (ParitylineError, OSError):
        return []


def _promoted(name: str) -> str:
    version = promoted_version(store_path(), name)
    return "no version is promoted" if version is None else f"the promoted version, {version}"


def _versions(name: str, bundles: dict[str, list[str]]) -> list[tuple[str, str]]:
    promoted = promoted_version(store_path(), name)
    return [
        (f"{name}@{version}", "promoted" if version == promoted else "")
        for version in bundles[name]
    ]


def with_whole_words(run: Callable[[], None], environment: MutableMapping[str, str]) -> None:
    """Run a completion for bash, which is asked for by `environment`.

    bash cuts `digits@01` into three words, and replaces only the last one by what is offered;
    typer knows of neither. So words are joined for it, and what bash has already is cut off again.
    """
    try:
        words = shlex.split(environment["COMP_WORDS"])
        place = int(environment["COMP_CWORD"])
    except (KeyError, ValueError):
        return run()
    joined, place, had = _joined(words, place)
    environment["COMP_WORDS"] = shlex.join(joined)
    environment["COMP_CWORD"] = str(place)
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            run()
    finally:
        for line in offered.getvalue().splitlines():
            print(line.removeprefix(had))


def _joined(words: list[str], place: int) -> tuple[list[str], int, str]:
    """Whole words, the place of the one to be completed, and what of it bash leaves as it is."""
    whole: list[str] = []
    at = had = None
    for number, word in enumerate(words):
        if whole and (word[:1] in _BREAKS or whole[-1][-1:] in _BREAKS):
            whole[-1] += word
        else:
            whole.append(word)
        if number == place:
            # readline takes the @ for a part of the word to be completed, and the = for none.
            at, text = len(whole) - 1, whole[-1]
            had = text[: max(text.rfind("@"), text.rfind("=") + 1, 0)]
    return whole, len(whole) if at is None else at, had or ""


def is_for_bash() -> bool:
    """Whether this process was started by bash to complete a line."""
    return os.environ.get(VARIABLE) == "complete_bash"
