"""What `benchmarks.serving` measured, as tables, and how it stands to the goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.peers import servers, wires
from benchmarks.serving_load import Throughput

OURS, PEER, FLOOR = "ours", "peer", "floor"
# What each entrant did: for each number of connections, a figure for each round.
Figures = dict[int, list[Throughput]]


@dataclass(frozen=True)
class Entrant:
    """A server and what it is sent. kind: OURS, PEER or FLOOR."""

    name: str
    kind: str
    server: servers.Server
    work: wires.Work


def side_by_side(
    title: str, entrants: Sequence[Entrant], found: dict[str, Figures], *, goal: float
) -> list[str]:
    """A table of all, and how ours stands to the best of the peers and to the floor."""
    (ours,) = (found[entrant.name] for entrant in entrants if entrant.kind == OURS)
    rivals = [found[entrant.name] for entrant in entrants if entrant.kind == PEER]
    floors = [found[entrant.name] for entrant in entrants if entrant.kind == FLOOR]
    counts = list(ours)
    heads = [f"{count} connection{'s' * (count > 1)}" for count in counts]
    rounds = len(ours[counts[0]])
    lines = [
        f"{title}: requests/s, p50 and p99 in ms; medians of {rounds} rounds (min to max).",
        "",
        f"| server | {' | '.join(heads)} | errors |",
        "|---" * (len(counts) + 2) + "|",
    ]
    for name, figures in found.items():
        cells = [
            f"{spread([figure.requests_per_s for figure in figures[count]], 0)}; "
            f"p50 {spread([figure.p50_ms for figure in figures[count]], 2)}; "
            f"p99 {spread([figure.p99_ms for figure in figures[count]], 2)}"
            for count in counts
        ]
        errors = sum(figure.errors for runs in figures.values() for figure in runs)
        lines.append(f"| {name} | {' | '.join(cells)} | {errors} |")
    lines.append("")
    for count, head in zip(counts, heads, strict=True):
        best = [
            max((rival[count][turn] for rival in rivals), key=lambda figure: figure.requests_per_s)
            for turn in range(rounds)
        ]
        lowest = [min(rival[count][turn].p99_ms for rival in rivals) for turn in range(rounds)]
        pairs = list(zip(ours[count], best, strict=True))
        rates = [own.requests_per_s / peer.requests_per_s for own, peer in pairs]
        tails = [own.p99_ms / peer.p99_ms for own, peer in pairs]
        tails_of_all = [own.p99_ms / other for own, other in zip(ours[count], lowest, strict=True)]
        said = (
            f"- {head}: {spread(rates, 2)} times the requests/s of the best peer (goal {goal}); "
            f"p99 {spread(tails, 2)} of that peer's (goal below 1), {spread(tails_of_all, 2)} of "
            "the lowest of any peer"
        )
        for floor in floors:
            of_floor = [
                own.requests_per_s / bare.requests_per_s
                for own, bare in zip(ours[count], floor[count], strict=True)
            ]
            said += f"; {spread(of_floor, 2)} of the floor (goal 0.7)"
        lines.append(said + ".")
    if 1 in counts:
        steady = [figure.p99_ms / figure.p50_ms for figure in ours[1]]
        lines.append(f"- p99/p50 at 1 connection: {spread(steady, 1)} (goal at most 5).")
    return lines


def under(
    title: str,
    entrants: Sequence[Entrant],
    found: dict[str, Figures],
    bare: list[float],
    *,
    goal: float,
) -> list[str]:
    """A table of items/s beside what the same work takes alone."""
    rows = {entrant.name: entrant.work.rows for entrant in entrants}
    many = next(iter(rows.values()))
    lines = [
        f"{title}; medians of {len(bare)} rounds (min to max).",
        "",
        "| | connections | a second | of alone | goal | p99, ms | errors |",
        "|---|---|---|---|---|---|---|",
        f"| alone | | {spread([rate * many for rate in bare], 0)} | 1 | | | |",
    ]
    for entrant in entrants:
        for count, figures in found[entrant.name].items():
            rates = [figure.requests_per_s for figure in figures]
            shares = [rate / other for rate, other in zip(rates, bare, strict=True)]
            lines.append(
                f"| {entrant.name} | {count} | {spread([rate * many for rate in rates], 0)} | "
                f"{spread(shares, 2)} | {goal if entrant.kind == OURS else ''} | "
                f"{spread([figure.p99_ms for figure in figures], 1)} | "
                f"{sum(figure.errors for figure in figures)} |"
            )
    return lines


def recorded(found: dict[str, Figures]) -> dict:
    """Figures as JSON takes them."""
    return {
        name: {str(count): [asdict(figure) for figure in runs] for count, runs in figures.items()}
        for name, figures in found.items()
    }


def spread(values: list[float], digits: int) -> str:
    """Median (min to max)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
