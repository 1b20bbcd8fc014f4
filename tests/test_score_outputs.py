"""What a job writes: which columns, in which form, and its figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.errors import DataError
from artifacts.predictor import Predictor
from serving.scoring.job import Options, score
from tests.scored import parts_of, score_file, table_of


@pytest.fixture(scope="module")
def rows(cancer: Predictor) -> np.ndarray:
    return cancer.golden.raw[np.random.default_rng(0).integers(0, len(cancer.golden.raw), 300)]


def test_what_is_written_is_chosen(cancer: Predictor, rows: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    odd = pa.array([None, 'say "x",\n', "é"] * 100)
    lists = pa.array([[1, 2], None, []] * 100)
    table = table_of(cancer, rows).append_column("odd", odd).append_column("lists", lists)
    pq.write_table(table, path)
    _, expected = cancer.run(rows)
    answered = ["row", "label", "index"]
    top = {"columns": ["id"], "probabilities": "top"}
    score_file(cancer, path, tmp_path / "a", top_k=2, **top)
    found = parts_of(tmp_path / "a")
    assert found.column_names == ["id", *answered, "probability", "top_1", "top_1_probability",
                                  "top_2", "top_2_probability"]  # fmt: skip
    np.testing.assert_array_equal(found["top_2_probability"].to_numpy(), expected.min(axis=1))
    assert found["top_1"] == found["label"]
    score_file(cancer, path, tmp_path / "b", columns=[], probabilities="none")
    assert parts_of(tmp_path / "b").column_names == answered
    for form in ("csv", "jsonl"):
        out = tmp_path / form
        score_file(cancer, path, out, format=form, columns=["id", "odd", "lists"])
        (part,) = out.glob(f"part-*.{form}")
        if form == "csv":
            with part.open(newline="", encoding="utf-8") as file:
                read = list(csv.DictReader(file))
            assert [row["odd"] or None for row in read] == odd.to_pylist()
        else:
            read = [json.loads(line) for line in part.read_text().splitlines()]
            assert [row["odd"] for row in read] == odd.to_pylist()
            assert [row["lists"] for row in read] == lists.to_pylist()
        labels = cancer.manifest.labels
        answers = [[float(row[f"probability_{label}"]) for label in labels] for row in read]
        np.testing.assert_array_equal(np.array(answers).astype(np.float32), expected)
        assert [int(row["id"]) for row in read] == list(range(300))
    with pytest.raises(DataError, match=r"no column 'idd' .*did you mean 'id'\?"):
        score_file(cancer, path, tmp_path / "c", columns=["idd"])
    with pytest.raises(DataError, match="--top-k: expected 0 to 2, found 3"):
        score_file(cancer, path, tmp_path / "c", top_k=3)


def test_readers_are_told_that_no_answer_is_missing(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    """What was passed through may be: that is the input's matter."""
    notes = ["a", None] * (len(rows) // 2)
    path = tmp_path / "rows.parquet"
    pq.write_table(table_of(cancer, rows).append_column("note", pa.array(notes)), path)
    score_file(cancer, path, tmp_path / "out", columns=["note"], top_k=2)
    found = parts_of(tmp_path / "out")
    assert {field.name for field in found.schema if field.nullable} == {"note"}
    assert found["note"].to_pylist() == notes
    assert all(column.null_count == 0 for column in found.drop_columns(["note"]).columns)


def test_a_reader_that_asks_for_a_file_or_rows_can_skip_other_parts(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    """What a part's least and greatest label and probability are helps nobody."""
    for name in ("a", "b"):
        pq.write_table(table_of(cancer, rows), tmp_path / f"{name}.parquet")
    given = [str(tmp_path / f"{name}.parquet") for name in ("a", "b")]
    score(cancer, given, tmp_path / "out", Options(columns=["id"]))
    for path, source in zip(sorted((tmp_path / "out").glob("part-*")), given, strict=True):
        group = pq.ParquetFile(path).metadata.row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        told = {
            column.path_in_schema: (column.statistics.min, column.statistics.max)
            for column in columns
            if column.is_stats_set
        }
        assert told.pop("file") == (source, source)
        assert told.pop("row") == told.pop("id") == (0, len(rows) - 1)
        assert set(told) == {"index"}


def test_known_labels_give_metrics_beside_those_at_release(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path, small_units: None
) -> None:
    _, expected = cancer.run(rows)
    labels = [cancer.manifest.labels[index] for index in expected.argmax(axis=1)]
    wrong = [cancer.manifest.labels[1 - cancer.manifest.labels.index(label)] for label in labels]
    for name, truth in {"good": labels, "bad": wrong[:150] + labels[150:]}.items():
        truth = [None, "other", *truth[2:]]
        table = table_of(cancer, rows).append_column("truth", pa.array(truth))
        pq.write_table(table, tmp_path / f"{name}.parquet")
        summary = score_file(cancer, tmp_path / f"{name}.parquet", tmp_path / name, target="truth")
        found = summary["target"]
        assert (found["rows"], found["unlabelled"], found["unknown"]) == (298, 1, 1)
        assert found["unknown_labels"] == {"other": 1}
        accuracy = found["metrics"]["accuracy"]["value"]
        assert accuracy == pytest.approx(1.0 if name == "good" else 150 / 298)
        assert found["beside_release"]["decayed"] == (name == "bad")


def test_drift_is_told_of_each_column(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path, small_units: None
) -> None:
    moved = table_of(cancer, rows)
    first, second = moved.column_names[1:3]
    pq.write_table(moved, tmp_path / "a.parquet")
    moved = moved.set_column(1, first, pa.array(rows[:, 0] * 3))
    pq.write_table(moved, tmp_path / "b.parquet")
    before = score_file(cancer, tmp_path / "a.parquet", tmp_path / "a")["drift"]
    after = score_file(cancer, tmp_path / "b.parquet", tmp_path / "b")["drift"]
    assert before[first]["psi"] < 0.25 < after[first]["psi"]
    assert after[first]["verdict"] == "shifted"
    assert before[second] == after[second]


def test_half_a_surrogate_pair_is_written_again_as_json_escapes_it(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    lines = [{**row, "note": note} for row, note in zip(
        table_of(cancer, rows).to_pylist(), ["\ud800x", "é", None], strict=False
    )]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert score_file(cancer, tmp_path / "rows.jsonl", tmp_path / "out")["rows_scored"] == 3
    assert parts_of(tmp_path / "out")["note"].to_pylist() == ["\\ud800x", "é", None]
