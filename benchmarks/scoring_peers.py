"""The pixels job as a whole command: ours, a script with pandas, and Ray Data; the same answers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.bundle import Bundle
from artifacts.manifest import ONNX
from benchmarks.scoring_runs import ours, timed
from benchmarks.scoring_tables import shares, spread

HERE = Path(__file__).parent / "peers"
OURS, PANDAS, RAY = "`parityline score`", "pandas and ONNX Runtime", "Ray Data"
_SCRIPTS = {PANDAS: HERE / "scoring_pandas.py", RAY: HERE / "scoring_ray.py"}
_GOALS = {PANDAS: 2.0, RAY: 1.0}


def beside_peers(
    bundle: Bundle, file: Path, out: Path, *, rows: int, rounds: int
) -> tuple[list[str], dict]:
    """Each round all three, by the clock; their answers are read back and compared.

    file: Parquet with `id`, from 0, and fixed-size binary `pixels`. out: a folder to write in.
    """
    took: dict[str, list[float]] = {OURS: [], PANDAS: [], RAY: []}
    differ: dict[str, int] = {PANDAS: 0, RAY: 0}
    largest: dict[str, float] = {PANDAS: 0.0, RAY: 0.0}
    for number in range(rounds):
        took[OURS].append(ours(bundle, file, out, "--columns", "").command_s)
        right = _answers(out, rows)
        for name in differ:
            took[name].append(_script(name, bundle, file, out.with_name("peer-answers")))
            found = _answers(out.with_name("peer-answers"), rows)
            labels, distance = _compare(right, found, name)
            differ[name] += labels
            largest[name] = max(largest[name], distance)
        seconds = {name: round(each[-1], 2) for name, each in took.items()}
        print(f"round {number}: seconds {seconds}, labels that differ {differ}", flush=True)
    shutil.rmtree(out.with_name("peer-answers"))
    lines = [
        f"{rows:,} rows of 28 x 28 pixels (784-128-64-10 MLP) from fixed-size binary in Parquet "
        "(pyarrow's defaults) to Parquet with row, label, index, probability and a column for each "
        f"label, whole commands: seconds, medians of {rounds} rounds (min to max).",
        "",
        "| | seconds | rows/s | ours is as fast, times | goal | labels that differ from ours | "
        "largest difference of a probability |",
        "|---|---|---|---|---|---|---|",
        f"| {OURS} | {spread(took[OURS], 2)} | {_rates(took[OURS], rows)} | 1 | | | |",
    ]
    for name, goal in _GOALS.items():
        lines.append(
            f"| {name} | {spread(took[name], 2)} | {_rates(took[name], rows)} | "
            f"{spread(shares(took[name], took[OURS]), 2)} | {goal:g} | {differ[name]} of "
            f"{rounds * rows:,} | {largest[name]:.1e} |"
        )
    return lines, {"rows": rows, "seconds": took, "labels_differ": differ, "largest": largest}


def _script(name: str, bundle: Bundle, file: Path, answers: Path) -> float:
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir(parents=True)
    labels = answers.with_name("labels.json")
    labels.write_text(json.dumps(bundle.manifest.labels))
    # A folder for whom writes one, a file in it for whom writes a file.
    written = answers if name == RAY else answers / "answers.parquet"
    given = [str(bundle.path / ONNX), str(labels), str(file), str(written)]
    return timed([sys.executable, str(_SCRIPTS[name]), *given])


def _answers(folder: Path, rows: int) -> pa.Table:
    """All parts, in the order of the rows, each of which must be there once."""
    parts = [pq.read_table(part) for part in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables([part for part in parts if "label" in part.column_names])
    table = table.sort_by("row")
    if not np.array_equal(table["row"].to_numpy(), np.arange(rows)):
        raise SystemExit(f"{folder}: expected each of {rows} rows once, found {len(table)}")
    return table


def _compare(right: pa.Table, found: pa.Table, name: str) -> tuple[int, float]:
    """How many labels differ, and the largest difference of a probability."""
    if set(found.column_names) != set(right.column_names):
        raise SystemExit(f"{name}: expected {right.column_names}, found {found.column_names}")
    labels = [table["label"].cast(pa.string()).to_numpy() for table in (right, found)]
    columns = [each for each in right.column_names if each.startswith("probability_")]
    distances = [np.abs(right[each].to_numpy() - found[each].to_numpy()).max() for each in columns]
    return int((labels[0] != labels[1]).sum()), float(max(distances))


def _rates(seconds: list[float], rows: int) -> str:
    return spread([rows / each for each in seconds])
