"""What a search says while it runs: one moving line on a terminal, a line a trial otherwise."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from artifacts.progress import OneLine, bar, is_narrow, text
from artifacts.terminal import moves
from training.tuning.study import Counts

_LONGEST_PARAMS = 100


class SearchDisplay:
    """A context in which a search is shown. wanted: the trials there are to be; 0 for no limit."""

    def __init__(self, console: Console, wanted: int, deadline: float | None) -> None:
        """deadline: when the search ends at the latest, by time.monotonic()."""
        self._console, self._wanted, self._deadline = console, wanted, deadline
        self._progress: Progress | None = None
        self._began = time.monotonic()
        self._ended_before: int | None = None
        self._best = ""

    def __enter__(self) -> SearchDisplay:
        if moves(self._console):
            self._progress = OneLine(
                MofNCompleteColumn(), bar(), text("{task.description}"), console=self._console
            )
            self._progress.start()
            self._task = self._progress.add_task("workers begin", total=self._wanted or None)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._progress is not None:
            self._progress.stop()

    def update(self, counts: Counts, best: tuple[int, float] | None) -> None:
        """How far it is. best: the number and the value of the best trial yet."""
        if self._ended_before is None:
            self._ended_before = counts.ended
        self._best = "" if best is None else f"best {best[1]:.4f} (trial {best[0]})"
        self._state = self._words(counts)
        if self._progress is not None:
            # The bar itself says how many, and how long is guessed from it.
            shown = self._best if is_narrow(self._console) else self._state
            self._progress.update(self._task, completed=counts.ended, description=shown)

    def trial(self, number: int, text: str) -> None:
        """A trial has ended."""
        line = f"trial {number:>4}  {text}"
        if self._progress is None:
            self.say(f"{line}  [{self._state}]")
        else:
            width = self._console.width
            self.say(line if len(line) <= width else f"{line[: width - 3]}...")

    def say(self, line: str) -> None:
        """A line of its own."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _words(self, counts: Counts) -> str:
        words = [self._best] if self._best else []
        words.append(f"{counts.complete} done, {counts.pruned} pruned, {counts.failed} failed")
        if left := self._left(counts):
            words.append(left)
        return ", ".join(words)

    def _left(self, counts: Counts) -> str:
        now = time.monotonic()
        known: list[float] = []
        ended = counts.ended - (self._ended_before or 0)
        if self._wanted and ended > 0:
            known.append((now - self._began) / ended * max(0, self._wanted - counts.ended))
        if self._deadline is not None:
            known.append(max(0.0, self._deadline - now))
        return f"about {_duration(min(known))} left" if known else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def params_text(params: dict[str, Any], *, whole: bool = False) -> str:
    """A trial's parameters in one line, cut off where it is long and not `whole`."""
    text = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )
    return text if whole or len(text) <= _LONGEST_PARAMS else f"{text[:_LONGEST_PARAMS]}..."
