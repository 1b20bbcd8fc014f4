"""The service beside other servers, beside its floor, under overload, and for a long time.

    python -m benchmarks.serving --data FOLDER --images FOLDER [PART...]

--data holds Fashion-MNIST's idx files, --images a folder of 224 x 224 JPEG pictures for each class.
PART: single, one, json, rows256, jpeg, overload, memory; all of them by default. Needs `wrk` on
PATH. Servers take turns within a round, each started anew; ratios are of one round's figures. What
is trained and the peers' environments are kept in --store and --environments. Replaces its section
of RESULTS.md, or the lines of the parts that were asked for; serving.json holds each round's
figures.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from artifacts.bundle import Bundle
from benchmarks.overload import memory, overload
from benchmarks.peers import alone, servers, wires
from benchmarks.peers.models import image_bodies, open_mlp, open_resnet, picture_bodies
from benchmarks.peers.servers import Setting
from benchmarks.results import asked, machine, measure_parts
from benchmarks.serving_load import Throughput, echo, wrk
from benchmarks.serving_tables import (
    FLOOR,
    OURS,
    PEER,
    Entrant,
    Figures,
    recorded,
    side_by_side,
    spread,
    under,
)

RECORD = Path(__file__).parent / "serving.json"
CACHE = Path.home() / ".cache" / "parityline-benchmarks"
CONNECTIONS = (1, 16, 64)
BODIES, ROWS = 16, 256
WARM_S = 2.0
# Of `one`: a machine that others use too is quiet for some seconds, seldom for minutes.
TURN_S, TURNS = 1.0, 21


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=CACHE / "store")
    parser.add_argument("--environments", type=Path, default=CACHE / "environments")
    parser.add_argument("--service", type=Path, default=servers.ROOT, help="the checkout served")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each figure")
    parser.add_argument("--overload-s", type=float, default=60.0, help="of each load")
    parser.add_argument("--requests", type=int, default=500_000, help="over which memory is seen")
    wanted, setting = asked(parser, PARTS, Setting)
    parts = {name: functools.partial(part, setting) for name, part in PARTS.items()}
    measure_parts("## Serving (serving.py)", RECORD, parts, wanted, lambda _: where(setting))


def where(setting: Setting) -> str:
    """Machine and versions, the peers' with them."""
    pinned = [
        line.replace("==", " ")
        for file in sorted(servers.HERE.glob("requirements-*.txt"))
        for line in file.read_text().splitlines()
        if line.startswith(f"{file.stem.removeprefix('requirements-')}==")
    ]
    version = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True).stdout
    return (
        f"{machine()[:-1]}, {', '.join(pinned)}, {version.split(' Copy')[0]}; "
        f"{setting.workers} workers each, wrk on the same cores."
    )


def single(setting: Setting) -> tuple[list[str], dict]:
    """One image a request: ours as binary v2, each peer on its own wire, the floor as bytes."""
    bundle, entrants = one_image(setting)
    found = in_turns(setting, bundle, entrants)
    title = f"One 28 x 28 image a request (784-128-64-10 MLP), {BODIES} different ones in turn"
    lines = side_by_side(title, entrants, found, goal=1.5)
    echoes = [echo(setting.seconds) for _ in range(setting.rounds)]
    lines.append(
        "- A byte to another process and back, over loopback: p50 "
        f"{spread([p50 for p50, _ in echoes], 3)}, p99/p50 "
        f"{spread([p99 / p50 for p50, p99 in echoes], 1)}: the machine's own part of the above."
    )
    return lines, {**recorded(found), "echo_ms": echoes}


def one(setting: Setting) -> tuple[list[str], dict]:
    """The same on one connection, with all servers up and turns of a second: what a server's tail
    is, rather than the machine's in the minute of its turn."""
    bundle, entrants = one_image(setting)
    found: dict[str, Figures] = {entrant.name: {1: []} for entrant in entrants}
    echoes = []
    with contextlib.ExitStack() as stack:
        ports = {}
        for entrant in entrants:
            running = stack.enter_context(servers.running(entrant.server, bundle, setting))
            ports[entrant.name] = running.port
            wires.check(entrant.name, running.port, entrant.work)
            wrk(running.port, entrant.work, connections=16, seconds=WARM_S)
        for turn in range(TURNS):
            for entrant in entrants:
                figure = wrk(ports[entrant.name], entrant.work, connections=1, seconds=TURN_S)
                found[entrant.name][1].append(figure)
                print(f"turn {turn}, {entrant.name}: {figure}", flush=True)
            echoes.append(echo(TURN_S))
    title = f"The same on one connection, all servers up, in turns of {TURN_S:.0f} s"
    lines = side_by_side(title, entrants, found, goal=1.5)
    lines.append(
        f"- A byte to another process and back in the same turns: p99/p50 "
        f"{spread([p99 / p50 for p50, p99 in echoes], 1)}."
    )
    return lines, {**recorded(found), "echo_ms": echoes}


def one_image(setting: Setting) -> tuple[Bundle, list[Entrant]]:
    """Who answers requests of one image, each on its own wire."""
    mlp = open_mlp(setting.store, setting.data)
    images, expected = image_bodies(mlp, setting.data, bodies=BODIES, rows=1)
    model = mlp.manifest.name
    return mlp.bundle, [
        Entrant("ours, v2 binary", OURS, servers.ours, wires.v2_binary(model, images, expected)),
        *peers(model, images, expected),
        Entrant(
            "FastAPI, raw bytes", FLOOR, servers.fastapi_raw, wires.fastapi_raw(images, expected)
        ),
    ]


def as_json(setting: Setting) -> tuple[list[str], dict]:
    """The same as JSON."""
    mlp = open_mlp(setting.store, setting.data)
    images, expected = image_bodies(mlp, setting.data, bodies=BODIES, rows=1)
    ours = Entrant("ours, JSON", OURS, servers.ours, wires.our_json(images, expected))
    entrants = [ours, *peers(mlp.manifest.name, images, expected)]
    found = in_turns(setting, mlp.bundle, entrants)
    title = "The same as JSON, POST /predict"
    return side_by_side(title, entrants, found, goal=1.0), recorded(found)


def peers(model: str, images: np.ndarray, expected: np.ndarray) -> list[Entrant]:
    """The other servers, each as its documentation shows."""
    as_v2 = wires.mlserver_v2(model, images, expected)
    plain = wires.bentoml_plain(images, expected)
    batched = wires.litserve_batched(images, expected)
    pydantic = wires.fastapi_json(images, expected)
    return [
        Entrant("BentoML, batchable", PEER, servers.bentoml_plain, plain),
        Entrant("FastAPI, pydantic", PEER, servers.fastapi_json, pydantic),
        Entrant("LitServe, batched", PEER, servers.litserve_batched, batched),
        Entrant("MLServer, V2 JSON", PEER, servers.mlserver_v2, as_v2),
        Entrant("MLServer, one process", PEER, servers.mlserver_one_process, as_v2),
    ]


def rows256(setting: Setting) -> tuple[list[str], dict]:
    """Many rows a request, beside ONNX Runtime with nothing around it."""
    mlp = open_mlp(setting.store, setting.data)
    images, expected = image_bodies(mlp, setting.data, bodies=BODIES, rows=ROWS)
    model = mlp.manifest.name
    entrants = [
        Entrant("ours, v2 binary", OURS, servers.ours, wires.v2_binary(model, images, expected)),
        Entrant(
            "FastAPI, raw bytes", FLOOR, servers.fastapi_raw, wires.fastapi_raw(images, expected)
        ),
    ]
    found, alone_rates = beside_alone(setting, mlp.bundle, entrants, [(list(images), 1)])
    bare = [max(rates) for rates in alone_rates]
    title = f"{ROWS} images a request, rows/s, beside ONNX Runtime alone ({setting.workers} x 1)"
    return under(title, entrants, found, bare, goal=0.5), {**recorded(found), "alone": bare}


def jpeg(setting: Setting) -> tuple[list[str], dict]:
    """One JPEG a request, beside decoding and inference with nothing around them."""
    resnet = open_resnet(setting.store, setting.images)
    pictures, expected = picture_bodies(resnet, setting.images)
    work = wires.our_pictures(pictures, expected)
    entrants = [Entrant("ours, POST /predict/image", OURS, servers.ours, work)]
    # Eight at once take less time each, as they do where requests are joined to batches.
    eights = [pictures[start : start + 8] for start in range(0, len(pictures) // 8 * 8, 8)]
    ways = [([[picture] for picture in pictures], 1), (eights, 8)]
    found, alone_rates = beside_alone(setting, resnet.bundle, entrants, ways)
    bare = [max(rates) for rates in alone_rates]
    title = (
        "One 224 x 224 JPEG a request (resnet18), pictures/s, beside decoding and ONNX Runtime "
        f"alone, one by one or eight at once, whichever is faster ({setting.workers} x 1)"
    )
    lines = under(title, entrants, found, bare, goal=0.9)
    one_by_one = [
        figure.requests_per_s / rates[0]
        for figure, rates in zip(found[entrants[0].name][16], alone_rates, strict=True)
    ]
    lines += ["", f"- Of one by one alone: {spread(one_by_one, 2)}."]
    return lines, {**recorded(found), "alone": alone_rates}


def in_turns(setting: Setting, bundle: Bundle, entrants: Sequence[Entrant]) -> dict[str, Figures]:
    """Each round every entrant's figures."""
    found: dict[str, Figures] = {entrant.name: {} for entrant in entrants}
    for number in range(setting.rounds):
        for entrant in entrants:
            for connections, figure in measured(setting, bundle, entrant, CONNECTIONS).items():
                found[entrant.name].setdefault(connections, []).append(figure)
                print(f"round {number}, {entrant.name}, {connections}: {figure}", flush=True)
    return found


def beside_alone(
    setting: Setting,
    bundle: Bundle,
    entrants: Sequence[Entrant],
    ways: Sequence[tuple[alone.Items, int]],
) -> tuple[dict[str, Figures], list[list[float]]]:
    """Each round the work alone, in requests/s for each of the ways, and every entrant's figures.

    ways: how it may be done alone, with the number of requests that an item stands for.
    """
    found: dict[str, Figures] = {entrant.name: {} for entrant in entrants}
    alone_rates = []
    for number in range(setting.rounds):
        seconds, processes = setting.seconds, setting.workers
        rates = [
            alone.rate(bundle.path, items, processes=processes, seconds=seconds) * size
            for items, size in ways
        ]
        alone_rates.append(rates)
        print(f"round {number}, alone: {rates} requests/s", flush=True)
        for entrant in entrants:
            for connections, figure in measured(setting, bundle, entrant, (16,)).items():
                found[entrant.name].setdefault(connections, []).append(figure)
                print(f"round {number}, {entrant.name}, {connections}: {figure}", flush=True)
    return found, alone_rates


def measured(
    setting: Setting, bundle: Bundle, entrant: Entrant, connections: Iterable[int]
) -> dict[int, Throughput]:
    """One entrant, started, checked and warmed up: for each number of connections its figures."""
    with servers.running(entrant.server, bundle, setting) as server:
        wires.check(entrant.name, server.port, entrant.work)
        wrk(server.port, entrant.work, connections=16, seconds=min(WARM_S, setting.seconds))
        return {
            count: wrk(server.port, entrant.work, connections=count, seconds=setting.seconds)
            for count in connections
        }


PARTS = {
    "single": single,
    "one": one,
    "json": as_json,
    "rows256": rows256,
    "jpeg": jpeg,
    "overload": overload,
    "memory": memory,
}

if __name__ == "__main__":
    main()
