"""Four times what the service sustains, and what it remembers of half a million requests.

Parts of `benchmarks.serving`: overload, memory.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

from artifacts.bundle import Bundle
from benchmarks.peers import servers, wires
from benchmarks.peers.models import image_bodies, open_mlp, open_resnet, picture_bodies
from benchmarks.peers.servers import Setting
from benchmarks.serving_load import Outcome, closed_loop, open_loop, percentile_ms, wrk

_BODIES = 16
_BUSY = 16
# Enough that a refused caller's connection is free again long before it is needed.
_CALLERS = 256
_EASY, _TOO_MUCH = 0.8, 4.0


@dataclass(frozen=True)
class Case:
    """A kind of request whose load is increased."""

    name: str
    bundle: Bundle
    work: wires.Work


def overload(setting: Setting) -> tuple[list[str], dict]:
    """Each kind of request: what is sustained, 80% of that, four times that; a server each."""
    lines = [
        f"What is sustained: {_BUSY} connections, the next request when the last is answered. Then "
        "an open loop: requests sent at random moments whatever comes back, each answer compared "
        "byte for byte with the one that was checked before. Milliseconds from when a request was "
        f"due, in brackets from when it was sent; {setting.overload_s:.0f} s each; the generator "
        "takes its share of the same cores.",
        "",
        "| requests | load | a second: asked for, sent | 200 | p50 | p99 | p99 to that at 80% "
        "(goal 3) | 429, 503 | their p99, max (goal 50) | other | lost | wrong | sent late, p99 |",
        "|---" * 13 + "|",
    ]
    figures: dict = {}
    for case in _cases(setting):
        with servers.running(servers.ours, case.bundle, setting) as server:
            answers = wires.check(case.name, server.port, case.work)
            aim = (server.port, case.work, answers)
            closed_loop(*aim, seconds=setting.seconds / 5, connections=_BUSY)
            busy = closed_loop(*aim, seconds=setting.seconds, connections=_BUSY)
            sustained = busy.statuses[200] / busy.answered_s
            kept: dict = {"sustained_per_s": sustained}
            easy_p99: tuple[float, float] | None = None
            for load in (_EASY, _TOO_MUCH):
                rate = load * sustained
                outcome = open_loop(
                    *aim, rate=rate, seconds=setting.overload_s, connections=_CALLERS
                )
                p99 = tuple(percentile_ms(outcome.accepted, 99, since) for since in (0, 1))
                easy_p99 = easy_p99 or p99
                lines.append(_line(case.name, load, rate, outcome, p99, easy_p99))
                print(lines[-1], flush=True)
                kept[str(load)] = _figures(outcome, rate)
            figures[case.name] = kept
    return lines, figures


def _cases(setting: Setting) -> list[Case]:
    mlp = open_mlp(setting.store, setting.data)
    resnet = open_resnet(setting.store, setting.images)
    name = mlp.manifest.name
    many = image_bodies(mlp, setting.data, bodies=_BODIES, rows=256)
    return [
        Case(
            "JPEG, resnet18",
            resnet.bundle,
            wires.our_pictures(*picture_bodies(resnet, setting.images)),
        ),
        Case("256 rows, v2 binary", mlp.bundle, wires.v2_binary(name, *many)),
    ]


def _line(
    name: str,
    load: float,
    rate: float,
    outcome: Outcome,
    p99: tuple[float, ...],
    easy_p99: tuple[float, ...],
) -> str:
    refused = [percentile_ms(outcome.refused, percent, 1) for percent in (99, 100)]
    other = sum(
        count for status, count in outcome.statuses.items() if status not in (200, 429, 503)
    )
    p50 = [percentile_ms(outcome.accepted, 50, since) for since in (0, 1)]
    late = percentile_ms([(value, value) for value in outcome.late], 99, 0)
    ratios = [found / easy if easy else 0.0 for found, easy in zip(p99, easy_p99, strict=True)]
    return (
        f"| {name} | {load:.0%} | {rate:,.0f}, {outcome.sent / outcome.sent_s:,.0f} | "
        f"{outcome.statuses[200]:,} | {p50[0]:.1f} [{p50[1]:.1f}] | {p99[0]:.1f} [{p99[1]:.1f}] | "
        f"{ratios[0]:.2f} [{ratios[1]:.2f}] | {len(outcome.refused):,} | "
        f"{refused[0]:.1f}, {refused[1]:.1f} | {other} | {outcome.lost} | {outcome.wrong} | "
        f"{late:.1f} |"
    )


def _figures(outcome: Outcome, rate: float) -> dict:
    percents = (50, 90, 99, 99.9, 100)
    return {
        "asked_per_s": rate,
        "sent": outcome.sent,
        "sent_s": outcome.sent_s,
        "statuses": {str(status): count for status, count in outcome.statuses.items()},
        "lost": outcome.lost,
        "wrong": outcome.wrong,
        "accepted_ms_from_due": {p: percentile_ms(outcome.accepted, p, 0) for p in percents},
        "accepted_ms_from_sent": {p: percentile_ms(outcome.accepted, p, 1) for p in percents},
        "refused_ms_from_sent": {p: percentile_ms(outcome.refused, p, 1) for p in percents},
        "late_ms": {p: percentile_ms([(v, v) for v in outcome.late], p, 0) for p in percents},
    }


def memory(setting: Setting) -> tuple[list[str], dict]:
    """Resident memory of the service's processes, shared pages once, as requests go by."""
    mlp = open_mlp(setting.store, setting.data)
    images = image_bodies(mlp, setting.data, bodies=_BODIES, rows=1)
    work = wires.v2_binary(mlp.manifest.name, *images)
    samples: list[tuple[int, float]] = []
    errors = 0
    with servers.running(servers.ours, mlp.bundle, setting) as server:
        wires.check("ours", server.port, work)
        done = 0
        while done < setting.requests:
            run = wrk(server.port, work, connections=_BUSY, seconds=max(1, setting.seconds / 5))
            done, errors = done + run.requests, errors + run.errors
            samples.append((done, _resident_mb(server.process.pid)))
            print(f"{done:,} requests: {samples[-1][1]:.1f} MB", flush=True)
    # The first tenth warms up allocators and caches.
    after = [size for count, size in samples if count > setting.requests / 10]
    growth = after[-1] / after[0] - 1
    line = (
        f"Memory of all of the service's processes (PSS) over {done:,} requests of one image "
        f"(v2 binary, {_BUSY} connections, {errors} errors): {after[0]:.1f} MB after the first "
        f"tenth, {after[-1]:.1f} MB at the end ({growth:+.1%}, goal within 5%), between "
        f"{min(after):.1f} and {max(after):.1f} MB in {len(after)} samples."
    )
    return [line], {"samples": samples}


def _resident_mb(pid: int) -> float:
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 1e6
