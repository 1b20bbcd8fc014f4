"""Offline scoring beside what the machine can do, and beside pandas and Ray Data.

    python -m benchmarks.scoring --data DIR --images DIR --tabular DIR --work DIR [PART...]

--data holds Fashion-MNIST's idx files, --images a folder of JPEG pictures for each class, --tabular
adult.csv. PART: pixels, table, jpeg, memory, ray, peers, cuda; by default all that this machine can
do. Within a round all take turns, each in processes of its own; shares are of one round's figures.
What is trained is kept in --store, what is scored in --work. Replaces its section of RESULTS.md, or
the lines of the parts that were asked for; scoring.json holds each round's figures.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from artifacts.bundle import Bundle
from artifacts.devices import cuda_device_count
from artifacts.inputs import ImageInput
from artifacts.manifest import ONNX
from benchmarks import scoring_data as data
from benchmarks.peers import bare
from benchmarks.peers.models import open_mlp, open_resnet, open_table
from benchmarks.results import asked, machine, measure_parts
from benchmarks.scoring_peers import beside_peers
from benchmarks.scoring_runs import Run, ours, peak_mb
from benchmarks.scoring_tables import Entrant, beside_bare, engines, fastest, shares, spread

RECORD = Path(__file__).parent / "scoring.json"
STORE = Path.home() / ".cache" / "parityline-benchmarks" / "store"
BATCHES, PICTURE_BATCHES, CUDA_BATCHES = (128, 256, 512), (1, 8, 32), (64, 256, 512)
# A share of them is enough to know a rate.
BARE_ROWS, LIST_ROWS, CSV_ROWS = 300_000, 300_000, 1_000_000
BARE_PICTURES = RAY_PICTURES = 2048
GROUP_ROWS = 65_536
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where things are, and how much is scored.

    data: the idx files; images: a folder of pictures for each class; tabular: has adult.csv.
    store: what is trained; work: what is scored, and for a while the answers. rows: of pixels.
    """

    data: Path
    images: Path
    tabular: Path
    work: Path
    store: Path
    rounds: int
    rows: int
    table_rows: int
    pictures: int
    memory_rows: int
    cuda_pictures: int

    @property
    def out(self) -> Path:
        """Where answers are written."""
        return self.work / "answers"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "images", "tabular", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of pixels; lists: 300,000")
    parser.add_argument("--table-rows", type=int, default=5_000_000, help="CSV: 1,000,000")
    parser.add_argument("--pictures", type=int, default=8192, help="Ray: 2,048")
    parser.add_argument("--memory-rows", type=int, default=1_000_000, help="and ten times as many")
    parser.add_argument("--cuda-pictures", type=int, default=30_000)
    able = [part for part in PARTS if part != "cuda" or cuda_device_count()]
    wanted, setting = asked(parser, PARTS, Setting, able)
    parts = {name: functools.partial(_emptied, part, setting) for name, part in PARTS.items()}
    measure_parts("## Offline scoring (scoring.py)", RECORD, parts, wanted, where)


def _emptied(
    part: Callable[[Setting], tuple[list[str], dict]], setting: Setting
) -> tuple[list[str], dict]:
    """A part, after which nothing of its last job is left."""
    try:
        return part(setting)
    finally:
        shutil.rmtree(setting.out, ignore_errors=True)


def where(part: str) -> str:
    """Machine and versions."""
    device = "CPU only"
    if part == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        device = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
        device = device.splitlines()[0]
    named = ", ".join(f"{package} {version(package)}" for package in ("pyarrow", "pandas", "ray"))
    cached = "files in the page cache as reading puts them there"
    return f"{machine(device)[:-1]}, {named}; a process a core, {cached}."


def pixels(setting: Setting) -> tuple[list[str], dict]:
    """Small pictures as pixels, from each way to hold them."""
    bundle = open_mlp(setting.store, setting.data).bundle
    work, idx, rows = setting.work, setting.data, setting.rows
    few = min(rows, LIST_ROWS)
    array = data.pixels_npy(work, idx, rows)
    fixed = data.pixels_fixed(work, idx, rows, compression="none", group_rows=GROUP_ROWS)
    packed = data.pixels_fixed(work, idx, rows)
    grouped, lists = (
        data.pixels_lists(work, idx, few, group_rows=size) for size in (GROUP_ROWS, None)
    )
    entrants = [
        Entrant(".npy", array, 0.7),
        Entrant(
            f"Parquet, fixed-size binary, not compressed, row groups of {GROUP_ROWS:,}", fixed, 0.7
        ),
        Entrant("Parquet, fixed-size binary, pyarrow's defaults", packed, 0.7),
        Entrant(f"Parquet, list<uint8>, row groups of {GROUP_ROWS:,}", grouped, 0.3),
        Entrant("Parquet, list<uint8>, pyarrow's defaults", lists, 0.3),
    ]
    title = "28 x 28 pixels (784-128-64-10 MLP)"
    lines, figures = in_turns(setting, title, bundle, entrants, array)
    reading = [bare.reading(grouped, processes=CORES) for _ in range(setting.rounds)]
    _, alone = fastest(figures["alone"])
    both = [1 / (1 / one + 1 / other) for one, other in zip(reading, alone, strict=True)]
    scoring = [run["rows"] / run["scoring_s"] for run in figures["ours"][entrants[3].name]]
    lines += [
        "",
        f"- pyarrow alone reads {spread(reading)} such lists/s by {CORES} processes; after that "
        f"inference on the same cores {spread(both)}, of which the scoring has "
        f"{spread(shares(scoring, both), 2)}.",
    ]
    return lines, {**figures, "reading": reading}


def table(setting: Setting) -> tuple[list[str], dict]:
    """Mixed columns."""
    bundle = open_table(setting.store, setting.tabular).bundle
    work, tabular, rows = setting.work, setting.tabular, setting.table_rows
    raw = data.mixed_raw(work, tabular, min(rows, BARE_ROWS), bundle)
    entrants = [
        Entrant("Parquet", data.mixed_parquet(work, tabular, rows), 0.5),
        Entrant("CSV", data.mixed_csv(work, tabular, min(rows, CSV_ROWS)), 0.25),
    ]
    title = "14 columns, 6 of numbers and 8 of categories (adult, the recipe for tables)"
    return in_turns(setting, title, bundle, entrants, raw)


def in_turns(
    setting: Setting, title: str, bundle: Bundle, entrants: list[Entrant], raw: Path
) -> tuple[list[str], dict]:
    """Each round ONNX Runtime alone over rows in memory, then the job on each input."""
    for entrant in entrants:
        data.read_anew(entrant.file)
    ceilings: list[dict[int, float]] = []
    runs: dict[str, list[Run]] = {entrant.name: [] for entrant in entrants}
    for number in range(setting.rounds):
        ceilings.append(bare.inference(bundle.path / ONNX, raw, BATCHES, processes=CORES))
        print(f"round {number}, alone: {ceilings[-1]}", flush=True)
        for entrant in entrants:
            _say(number, entrant.name, run := ours(bundle, entrant.file, setting.out))
            runs[entrant.name].append(run)
    size, ceiling = fastest(ceilings)
    alone = (
        f"ONNX Runtime alone, rows in memory, {CORES} processes of one thread, best of batches of "
        f"{', '.join(map(str, BATCHES))}: {size}"
    )
    lines = beside_bare(title, alone, ceiling, entrants, runs)
    return lines, {"alone": ceilings, "ours": _recorded(runs)}


def jpeg(setting: Setting) -> tuple[list[str], dict]:
    """Encoded pictures beside decoding alone and inference alone."""
    bundle, folder = _jpeg_job(setting, setting.pictures)
    few = min(setting.pictures, BARE_PICTURES)
    raw = data.pictures_npy(setting.work, setting.images, few)
    spec = bundle.manifest.input
    assert isinstance(spec, ImageInput)
    decoded, inferred = [], []
    entrant = Entrant("a folder of JPEGs", folder, 0.95)
    runs: dict[str, list[Run]] = {entrant.name: []}
    for number in range(setting.rounds):
        decoded.append(bare.decoding(folder, spec, processes=CORES))
        inferred.append(bare.inference(bundle.path / ONNX, raw, PICTURE_BATCHES, processes=CORES))
        print(f"round {number}, alone: {decoded[-1]} {inferred[-1]}", flush=True)
        _say(number, entrant.name, run := ours(bundle, folder, setting.out))
        runs[entrant.name].append(run)
    size, alone = fastest(inferred)
    floor = [min(pair) for pair in zip(decoded, alone, strict=True)]
    both = [1 / (1 / one + 1 / other) for one, other in zip(decoded, alone, strict=True)]
    said = (
        f"the slower of decoding alone and inference alone (resnet18, {CORES} processes of one "
        f"thread, best of batches of {', '.join(map(str, PICTURE_BATCHES))}: {size})"
    )
    lines = beside_bare("224 x 224 JPEGs (resnet18)", said, floor, [entrant], runs)
    scoring = [run.scoring_rate for run in runs[entrant.name]]
    lines += [
        "",
        f"- Decoding alone {spread(decoded)} pictures/s, inference alone {spread(alone)}; one "
        f"after the other on the same cores {spread(both)}, of which the scoring has "
        f"{spread(shares(scoring, both), 2)}.",
    ]
    figures = {"decoding": decoded, "inference": inferred, "ours": _recorded(runs)}
    return lines, figures


def memory(setting: Setting) -> tuple[list[str], dict]:
    """The most that all processes hold, for some rows and ten times as many."""
    bundle = open_mlp(setting.store, setting.data).bundle
    counts = (setting.memory_rows, 10 * setting.memory_rows)
    files = [data.read_anew(data.pixels_fixed(setting.work, setting.data, rows)) for rows in counts]
    peaks: list[list[float]] = []
    for number in range(setting.rounds):
        found = [peak_mb(bundle, file, setting.out) for file in files]
        print(f"round {number}: MB and samples {found}", flush=True)
        peaks.append([peak for peak, _ in found])
    few, many = zip(*peaks, strict=True)
    ratios = [larger / smaller for smaller, larger in peaks]
    line = (
        "Memory of `parityline score` and all of its processes (sum of PSS every 50 ms), pixels as "
        f"fixed-size binary in Parquet, the largest of a job, medians of {setting.rounds} rounds "
        f"(min to max): {counts[0]:,} rows {spread(list(few))} MB, {counts[1]:,} rows "
        f"{spread(list(many))} MB (goal below 1,000), {spread(ratios, 2)} times as much (goal 1)."
    )
    return [line], {"rows": counts, "peak_mb": peaks}


def on_ray(setting: Setting) -> tuple[list[str], dict]:
    """The same job by Ray's actors, and by processes of this machine."""
    pictures = min(setting.pictures, RAY_PICTURES)
    bundle, folder = _jpeg_job(setting, pictures)
    runs: dict[str, list[Run]] = {"local": [], "ray": []}
    for number in range(setting.rounds):
        for engine in runs:
            _say(number, engine, run := ours(bundle, folder, setting.out, "--engine", engine))
            runs[engine].append(run)
    title = f"224 x 224 JPEGs (resnet18), {pictures:,} of them, by {CORES} processes"
    return engines(title, runs["local"], runs["ray"], goal=0.6), _recorded(runs)


def peers(setting: Setting) -> tuple[list[str], dict]:
    """The same answers by a script with pandas, and by Ray Data."""
    bundle = open_mlp(setting.store, setting.data).bundle
    file = data.pixels_fixed(setting.work, setting.data, setting.rows)
    return beside_peers(bundle, file, setting.out, rows=setting.rows, rounds=setting.rounds)


def cuda(setting: Setting) -> tuple[list[str], dict]:
    """A GPU that has nothing to wait for."""
    if not cuda_device_count():
        raise SystemExit("cuda: expected a CUDA device, the driver shows none")
    bundle = open_resnet(setting.store, setting.images).bundle
    file = data.pictures_npy(setting.work, setting.images, setting.cuda_pictures)
    entrant = Entrant(".npy", file, 0.9)
    runs: dict[str, list[Run]] = {entrant.name: []}
    sessions = []
    for number in range(setting.rounds):
        sessions.append(
            bare.inference(bundle.path / ONNX, file, CUDA_BATCHES, processes=1, device="cuda")
        )
        print(f"round {number}, alone: {sessions[-1]}", flush=True)
        _say(number, entrant.name, run := ours(bundle, file, setting.out, device="cuda"))
        runs[entrant.name].append(run)
    size, rates = fastest(sessions)
    alone = (
        "ONNX Runtime alone on CUDA, pictures in memory, without TF32, best of batches of "
        f"{', '.join(map(str, CUDA_BATCHES))}: {size}"
    )
    lines = beside_bare("224 x 224 pixels (resnet18) on a GPU", alone, rates, [entrant], runs)
    return lines, {"alone": sessions, "ours": _recorded(runs)}


def _jpeg_job(setting: Setting, pictures: int) -> tuple[Bundle, Path]:
    """The network, and a folder of so many pictures."""
    bundle = open_resnet(setting.store, setting.images).bundle
    return bundle, data.jpegs(setting.work, setting.images, pictures)


def _say(number: int, name: str, run: Run) -> None:
    print(
        f"round {number}, {name}: {run.rows:,} rows, {run.scoring_rate:,.0f}/s, "
        f"whole command {run.command_rate:,.0f}/s",
        flush=True,
    )


def _recorded(runs: dict[str, list[Run]]) -> dict:
    return {name: [asdict(run) for run in each] for name, each in runs.items()}


PARTS: dict[str, Callable[[Setting], tuple[list[str], dict]]] = {
    "pixels": pixels,
    "table": table,
    "jpeg": jpeg,
    "memory": memory,
    "ray": on_ray,
    "peers": peers,
    "cuda": cuda,
}

if __name__ == "__main__":
    main()
