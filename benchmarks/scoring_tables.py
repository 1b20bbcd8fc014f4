"""What `benchmarks.scoring` measured, as tables, and how it stands to the goals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring_runs import Run


@dataclass(frozen=True)
class Entrant:
    """An input, and the share of what was done alone that its scoring is to reach."""

    name: str
    file: Path
    goal: float


def beside_bare(
    title: str,
    alone: str,
    bare: list[float],
    entrants: list[Entrant],
    runs: dict[str, list[Run]],
) -> list[str]:
    """A table of rows/s: of the scoring, of the whole command, and their shares of `bare`.

    alone: what `bare` is; bare, and runs by the entrants' names, have a figure for each round.
    """
    lines = [
        f"{title}: rows/s, of the scoring (from when the bundle is open; other processes have "
        f"opened it meanwhile) and of the whole command; medians of {len(bare)} rounds (min to "
        f"max). Alone is {alone}.",
        "",
        "| input | rows | scoring | of alone | goal | whole command | of alone |",
        "|---|---|---|---|---|---|---|",
        f"| alone | | {spread(bare)} | 1 | | | |",
    ]
    for entrant in entrants:
        found = runs[entrant.name]
        scoring = [run.scoring_rate for run in found]
        command = [run.command_rate for run in found]
        lines.append(
            f"| {entrant.name} | {found[0].rows:,} | {spread(scoring)} | "
            f"{spread(shares(scoring, bare), 2)} | {entrant.goal} | {spread(command)} | "
            f"{spread(shares(command, bare), 2)} |"
        )
    return lines


def engines(title: str, local: list[Run], ray: list[Run], *, goal: float) -> list[str]:
    """A table of both engines' rows/s, and the shares that Ray's has of the other's."""
    lines = [
        f"{title}: pictures/s, of the scoring (from when the bundle is open; the start of Ray's "
        f"cluster is in it) and of the whole command; medians of {len(local)} rounds (min to max).",
        "",
        "| engine | scoring | of local | whole command | of local | goal |",
        "|---|---|---|---|---|---|",
    ]
    scoring, command = (
        [[getattr(run, rate) for run in runs] for runs in (local, ray)]
        for rate in ("scoring_rate", "command_rate")
    )
    lines.append(f"| local | {spread(scoring[0])} | 1 | {spread(command[0])} | 1 | |")
    lines.append(
        f"| ray | {spread(scoring[1])} | {spread(shares(scoring[1], scoring[0]), 2)} | "
        f"{spread(command[1])} | {spread(shares(command[1], command[0]), 2)} | {goal} |"
    )
    return lines


def shares(ours: list[float], others: list[float]) -> list[float]:
    """Round by round."""
    return [own / other for own, other in zip(ours, others, strict=True)]


def fastest(rounds: list[dict[int, float]]) -> tuple[int, list[float]]:
    """The batch size that is the fastest by the median of all rounds, and its rate in each.

    Of each round's fastest, chance alone would make more than any of them can do.
    """
    size = max(rounds[0], key=lambda size: statistics.median(found[size] for found in rounds))
    return size, [found[size] for found in rounds]


def spread(values: list[float], digits: int = 0) -> str:
    """Median (min to max)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
