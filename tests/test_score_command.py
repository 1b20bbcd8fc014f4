"""`parityline score`: what is typed reaches the job, and what came out is shown."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.predictor import Predictor
from tests.conftest import Ended

ROWS = 300


@pytest.fixture(scope="module")
def table(cancer: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partitioned set of two files; `truth` is what the model says, but for each tenth row."""
    names = [column.name for column in cancer.manifest.input.columns]
    raw = cancer.golden.raw[np.arange(ROWS) % len(cancer.golden.raw)]
    index = cancer.run(raw)[1].argmax(axis=1)
    index[::10] = 1 - index[::10]
    truth = [cancer.manifest.labels[each] for each in index]
    columns = {name: raw[:, k] for k, name in enumerate(names)}
    folder = tmp_path_factory.mktemp("score-command") / "set"
    for day in ("2026-01-01", "2026-01-02"):
        (folder / f"day={day}").mkdir(parents=True)
        pq.write_table(
            pa.table({"id": np.arange(ROWS), **columns, "truth": [None, "new", *truth[2:]]}),
            folder / f"day={day}" / "rows.parquet",
        )
    return folder


def test_every_option_reaches_the_job_and_the_figures_are_shown(
    cli: Callable[..., Ended], store: Path, cancer: Predictor, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = cli(
        "score", "breast-cancer", str(table), "--out", str(out), "--columns", "day,id",
        "--where", "day>2026-01-01", "--limit", "200", "--format", "csv", "--top-k", "2",
        "--probabilities", "top", "--target", "truth", "--workers", "1", "--batch-size", "7",
        "--max-rejects", "0", "--device", "cpu", "--backend", "onnx",
        PARITYLINE_STORE=str(store),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (part,) = out.glob("part-*.csv")
    with part.open(newline="") as file:
        rows = list(csv.DictReader(file))
    answered = ["row", "label", "index", "probability"]
    tops = ["top_1", "top_1_probability", "top_2", "top_2_probability"]
    assert list(rows[0]) == ["day", "id", *answered, *tops]
    assert len(rows) == 200
    assert {row["day"] for row in rows} == {"2026-01-02"}
    assert "200 rows in, 200 scored, 0 rejected" in result.stdout
    assert (
        "198 rows have a known label, 1 none, 1 one that the model does not know: 'new'"
        in result.stdout
    )
    target = json.loads((out / "summary.json").read_text())["target"]
    assert target["metrics"]["accuracy"]["value"] == pytest.approx(179 / 198)
    assert target["beside_release"]["figures"]["accuracy"]["text"] in result.stdout
    assert target["beside_release"]["text"] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--address", "auto"], 1, "--address: expected --engine ray with it"),
        (["--batch-size", "100000"], 1, "--batch-size: expected 1 to 128, found 100000"),
        (["--batch-size", "0"], 2, "Invalid value for '--batch-size'"),
        (["--top-k", "3"], 1, "--top-k: expected 0 to 2, found 3"),
        (["--limit", "-1"], 2, "Invalid value for '--limit'"),
        (["--workers", "0"], 2, "Invalid value for '--workers'"),
        (["--format", "xml"], 2, "Invalid value for '--format'"),
        (["--engine", "spark"], 2, "Invalid value for '--engine'"),
        (["--probabilities", "some"], 2, "Invalid value for '--probabilities'"),
        (["--columns", "di"], 1, "has no column 'di' to be written again, found 'id'"),
        (["--target", "thruth"], 1, "has no column 'thruth'; did you mean 'truth'?"),
        (["--where", "dya=1"], 1, "has no partition 'dya', found 'day'; did you mean 'day'?"),
        (["--where", "day"], 1, "--where: expected NAME=VALUE, or <, <=, >, >= or !=, found 'day'"),
        (["--where", "day>2027"], 1, "--where day>2027: none of 2 files is meant"),
        (["--device", "cuda"], 1, "device cuda was asked for"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    cli: Callable[..., Ended], store: Path, table: Path, tmp_path: Path,
    arguments: list[str], status: int, message: str,
) -> None:  # fmt: skip
    result = cli(
        "score", "breast-cancer", str(table), "--out", str(tmp_path / "out"), *arguments,
        PARITYLINE_STORE=str(store), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    if status == 1:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
