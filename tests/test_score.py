"""Offline scoring: each row once, bad ones with a reason, and the answers of the service."""

from __future__ import annotations

import csv
import decimal
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.arrow import encode_table
from artifacts.cells import encode_columns
from artifacts.errors import DataError
from artifacts.inputs import Column, TableInput
from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from tests.conftest import Server
from tests.scored import parts_of, probabilities_of, rejected_of, score_file


@pytest.fixture(scope="module")
def rows(cancer: Predictor) -> np.ndarray:
    generator = np.random.default_rng(0)
    return cancer.golden.raw[generator.integers(0, len(cancer.golden.raw), 400)]


def names(predictor: Predictor) -> list[str]:
    return [column.name for column in predictor.manifest.input.columns]


def write_csv(path: Path, header: list[str], lines: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


def test_parquet_csv_and_npz_give_the_same_bits(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    header = names(cancer)
    _, expected = cancer.run(rows)
    pq.write_table(
        pa.table({"id": list(range(400)), **dict(zip(header, rows.T, strict=True))}),
        tmp_path / "a.parquet", row_group_size=37,
    )  # fmt: skip
    write_csv(tmp_path / "b.csv", header[::-1], [row[::-1] for row in rows.tolist()])
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress((tmp_path / "b.csv").read_bytes()))
    np.savez(tmp_path / "d.npz", cells=rows)
    texts = {name: [repr(value) for value in rows[:, i].tolist()] for i, name in enumerate(header)}
    pq.write_table(pa.table(texts), tmp_path / "e.parquet")
    for file in ("a.parquet", "b.csv", "c.csv.gz", "d.npz", "e.parquet"):
        out = tmp_path / f"out-{file}"
        summary = score_file(cancer, tmp_path / file, out, batch_size=53)
        assert summary["rows_in"] == summary["rows_scored"] == 400, summary["reasons"]
        table = parts_of(out)
        np.testing.assert_array_equal(probabilities_of(table, cancer), expected)
        assert table["row"].to_pylist() == list(range(400))
        assert table["index"].to_pylist() == expected.argmax(axis=1).tolist()
        labels = [cancer.manifest.labels[index] for index in expected.argmax(axis=1)]
        assert table["label"].to_pylist() == labels
        np.testing.assert_array_equal(table["probability"].to_numpy(), expected.max(axis=1))
    assert parts_of(tmp_path / "out-a.parquet")["id"].to_pylist() == list(range(400))


def test_scores_equal_the_services_answers_bit_for_bit(
    serve: Callable[[str], Server], cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    """Promise 2, across the offline job and HTTP, for table rows."""
    header = names(cancer)
    write_csv(tmp_path / "rows.csv", header, rows.tolist())
    score_file(cancer, tmp_path / "rows.csv", tmp_path / "out")
    offline = parts_of(tmp_path / "out")
    instances = [dict(zip(header, row, strict=True)) for row in rows.tolist()]
    with serve("breast-cancer").client() as client:
        answer = client.post("/predict", json={"instances": instances}).json()
    online = np.array(
        [[p["probabilities"][label] for label in cancer.manifest.labels]
         for p in answer["predictions"]]
    )  # fmt: skip
    np.testing.assert_array_equal(probabilities_of(offline, cancer).astype(np.float64), online)
    assert offline["label"].to_pylist() == [p["label"] for p in answer["predictions"]]


def test_pictures_are_read_from_every_layout(digits: Predictor, tmp_path: Path) -> None:
    raw = digits.golden.raw[:50]
    _, expected = digits.run(raw)
    encoded = [encode_png(pixels) for pixels in raw]
    flat = raw.reshape(50, 64)
    hugging_face = pa.array(
        [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    layouts = {
        "struct": {"image": hugging_face, "label": pa.array(["truth"] * 50)},
        "binary": {"image": pa.array(encoded)},
        "fixed": {"pixels": pa.array([row.tobytes() for row in flat], pa.binary(64))},
        "list": {"pixels": pa.array(flat.tolist(), pa.list_(pa.uint8()))},
        "fixed-list": {"pixels": pa.FixedSizeListArray.from_arrays(flat.ravel(), 64)},
    }
    for name, columns in layouts.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    np.savez(tmp_path / "x.npz", x=raw[:, 0])
    np.savez(tmp_path / "images.npz", images=raw)
    for file in [f"{name}.parquet" for name in layouts] + ["x.npz", "images.npz"]:
        out = tmp_path / f"out-{file}"
        assert score_file(digits, tmp_path / file, out)["rows_scored"] == 50
        np.testing.assert_array_equal(probabilities_of(parts_of(out), digits), expected)
    table = parts_of(tmp_path / "out-struct.parquet")
    assert "image" not in table.column_names
    assert table["input_label"].to_pylist() == ["truth"] * 50
    assert set(table["label"].to_pylist()) <= set(digits.manifest.labels)


def test_bad_pictures_are_rejected_with_their_row_and_reason(
    digits: Predictor, tmp_path: Path
) -> None:
    good = encode_png(digits.golden.raw[0])
    pq.write_table(
        pa.table({"image": [good, b"no", None, good, good[:30]]}), tmp_path / "a.parquet"
    )
    summary = score_file(digits, tmp_path / "a.parquet", tmp_path / "out")
    assert (summary["rows_scored"], summary["rows_rejected"]) == (2, 3)
    assert parts_of(tmp_path / "out")["row"].to_pylist() == [0, 3]
    rejected = rejected_of(tmp_path / "out")
    assert [entry["row"] for entry in rejected] == [1, 2, 4]
    assert "expected a picture" in rejected[0]["reason"]
    assert "missing" in rejected[1]["reason"]
    pixels = [[0] * 64, [0] * 63, [256] * 64, None, [None] * 64]
    pq.write_table(pa.table({"pixels": pixels}), tmp_path / "b.parquet")
    summary = score_file(digits, tmp_path / "b.parquet", tmp_path / "out2")
    assert (summary["rows_scored"], summary["rows_rejected"]) == (1, 4)


CELL = st.one_of(
    st.floats(0, 100).map(repr),
    st.sampled_from(["", "NA", "abc", "1,5", "inf", ' "quoted" ', "two\nlines", "é", "1e400"]),
)


@settings(deadline=None, max_examples=40)
@given(
    lines=st.lists(
        st.tuples(st.lists(CELL, min_size=3, max_size=3), st.integers(-1, 1)), max_size=25
    )
)
def test_rows_in_are_rows_scored_and_rows_rejected_by_their_number(
    tmp_path_factory: pytest.TempPathFactory, cancer: Predictor, lines: list
) -> None:
    """Rejected cells, ragged rows, quotes and line breaks in cells: every row is accounted for."""
    folder = tmp_path_factory.mktemp("csv")
    header, base = names(cancer), cancer.golden.raw[0].tolist()
    written: list[list[object]] = []
    good = []
    for number, (cells, ragged) in enumerate(lines):
        row: list[object] = [f"note\n{number}" if cells[0] == "abc" else str(number), *base]
        row[1:4] = cells
        if ragged == 1:
            row.append("more")
        elif ragged == -1:
            row.pop()
        try:
            values = [float(cell) for cell in cells]
            if ragged == 0 and all(np.isfinite(values)):
                good.append(number)
        except ValueError:
            pass
        written.append(row)
    write_csv(folder / "rows.csv", ["note", *header], written)
    summary = score_file(cancer, folder / "rows.csv", folder / "out")
    rejected = pq.read_table(folder / "out" / "rejected.parquet")["row"].to_pylist()
    scored = parts_of(folder / "out")["row"].to_pylist() if summary["parts"] else []
    assert scored == good
    assert sorted([*scored, *rejected]) == list(range(len(lines)))
    assert summary["rows_in"] == len(lines) == summary["rows_scored"] + summary["rows_rejected"]
    assert json.loads((folder / "out" / "summary.json").read_text())["rows_in"] == len(lines)


def test_what_cannot_be_read_is_said_before_anything_is_written(
    cancer: Predictor, digits: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    header = names(cancer)
    write_csv(tmp_path / "short.csv", header[1:], [])
    write_csv(tmp_path / "twice.csv", [*header, header[0]], [])
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    times = pa.array([0] * 2, pa.timestamp("s"))
    pq.write_table(pa.table(dict.fromkeys(header, times)), tmp_path / "times.parquet")
    np.savez(tmp_path / "wide.npz", cells=np.zeros((2, 31)))
    np.savez(tmp_path / "names.npz", other=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", cells=np.array([{}], dtype=object))
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "utf16.csv").write_bytes((",".join(header) + "\n").encode("utf-16"))
    np.save(tmp_path / "plain.npy", np.zeros((2, 30)))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    np.savez(tmp_path / "scalar.npz", cells=np.float64(1))
    cases = {
        "short.csv": "missing column: 'mean radius'",
        "twice.csv": "column twice: 'mean radius'",
        "empty.csv": "cannot be read: Empty CSV file",
        "broken.parquet": "cannot be read",
        "other.parquet": "missing column.*other columns: 'a'",
        "times.parquet": "column 'mean radius': expected numbers, found timestamp",
        "wide.npz": r"cells: expected numbers of shape \[N, 30\], found float64 \[2, 31\]",
        "names.npz": r"expected an array 'cells' or 'x', found \['other'\]",
        "pickled.npz": "not an .npz file of plain arrays",
        "text.txt": "expected a file that ends in",
        "utf16.csv": "line 1: expected UTF-8 text",
        "plain.npz": "not an .npz file",
        "scalar.npz": r"cells: expected numbers of shape \[N, 30\], found float64 \[\]",
        "none.csv": "expected a file .*, found none",
    }
    for file, message in cases.items():
        with pytest.raises(DataError, match=rf"{file}: ({message})"):
            score_file(cancer, tmp_path / file, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    np.savez(tmp_path / "floats.npz", x=np.zeros((2, 8, 8)))
    with pytest.raises(DataError, match="expected uint8"):
        score_file(digits, tmp_path / "floats.npz", tmp_path / "out")
    write_csv(tmp_path / "rows.csv", header, rows[:2].tolist())
    with pytest.raises(
        DataError, match="a model of pictures takes Parquet, arrays or pictures, not CSV"
    ):
        score_file(digits, tmp_path / "rows.csv", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"expected a new or empty folder, .* found mine\.txt"):
        score_file(cancer, tmp_path / "rows.csv", tmp_path / "full")
    with pytest.raises(DataError, match="--out"):
        score_file(cancer, tmp_path / "rows.csv", tmp_path / "full" / "mine.txt")
    with pytest.raises(DataError, match="--batch-size: expected 1 to 128, found 129"):
        score_file(cancer, tmp_path / "rows.csv", tmp_path / "out", batch_size=129)


def test_an_input_without_rows_gives_an_empty_result(cancer: Predictor, tmp_path: Path) -> None:
    write_csv(tmp_path / "none.csv", names(cancer), [])
    pq.write_table(
        pa.table({name: pa.array([], pa.float64()) for name in names(cancer)}),
        tmp_path / "none.parquet",
    )
    np.savez(tmp_path / "none.npz", cells=np.zeros((0, 30)))
    for file in ("none.csv", "none.parquet", "none.npz"):
        summary = score_file(cancer, tmp_path / file, tmp_path / f"out-{file}")
        assert (summary["rows_in"], summary["parts"]) == (0, [])
        assert (tmp_path / f"out-{file}" / "summary.json").is_file()


def test_a_column_of_other_number_types_is_read_as_numbers(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    header = names(cancer)
    whole = np.rint(rows * 10)
    columns = dict(zip(header, whole.T, strict=True))
    columns[header[0]] = pa.array(whole[:, 0].astype(np.int64))
    columns[header[1]] = pa.array(whole[:, 1].astype(np.float32))
    columns[header[2]] = pa.array(whole[:, 2].astype(int).astype(str)).dictionary_encode()
    columns[header[3]] = pa.array(
        [decimal.Decimal(int(value)) for value in whole[:, 3]], pa.decimal128(12, 0)
    )
    columns[header[4]] = pa.array([None, *whole[1:, 4].tolist()])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    summary = score_file(cancer, tmp_path / "a.parquet", tmp_path / "out")
    assert (summary["rows_scored"], summary["rows_rejected"]) == (399, 1)
    _, expected = cancer.run(whole[1:])
    np.testing.assert_array_equal(probabilities_of(parts_of(tmp_path / "out"), cancer), expected)


def test_passed_columns_are_kept_as_they_stood(cancer: Predictor, tmp_path: Path) -> None:
    header, base = names(cancer), cancer.golden.raw[0].tolist()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["id", "row", *header])
    writer.writerow(["007", "a", *base])
    writer.writerow(["NA", 'say "x"\nplease', *base])
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    score_file(cancer, tmp_path / "a.csv", tmp_path / "out")
    table = parts_of(tmp_path / "out")
    assert table["id"].to_pylist() == ["007", "NA"]
    assert table["input_row"].to_pylist() == ["a", 'say "x"\nplease']
    assert table["row"].to_pylist() == [0, 1]


def test_a_cells_fate_does_not_depend_on_its_neighbours(cancer: Predictor, tmp_path: Path) -> None:
    """Arrow reads a whole column faster, but only where it reads what `parse_number` reads."""
    header, base = names(cancer), [repr(value) for value in cancer.golden.raw[0].tolist()]
    odd = ["-nan", "NaN", "+inf", "1_0", "\u0663", "0x1p3", " 12.5 ", "1e3", "-0"]
    alone = []
    for cell in odd:
        write_csv(tmp_path / "one.csv", header, [[cell, *base[1:]]])
        out = tmp_path / f"one{len(alone)}"
        alone.append(score_file(cancer, tmp_path / "one.csv", out)["rows_scored"])
    write_csv(tmp_path / "all.csv", header, [[cell, *base[1:]] for cell in odd])
    score_file(cancer, tmp_path / "all.csv", tmp_path / "all")
    rows = parts_of(tmp_path / "all")["row"].to_pylist()
    assert rows == [row for row, scored in enumerate(alone) if scored]
    assert rows == [6, 7, 8]


def test_a_long_text_cell_is_passed_through(cancer: Predictor, tmp_path: Path) -> None:
    base = cancer.golden.raw[0].tolist()
    write_csv(tmp_path / "a.csv", ["note", *names(cancer)], [["x" * 3_000_000, *base]] * 2)
    assert score_file(cancer, tmp_path / "a.csv", tmp_path / "out")["rows_scored"] == 2


@pytest.mark.parametrize("cell", ["-nan", "inf", "NaN"])
def test_a_text_that_arrow_reads_alone_is_read_by_our_rule(cell: str) -> None:
    spec = TableInput(columns=(Column(name="a", missing="fill", low=0, high=1, typical=0.5),))
    _raw, bad = encode_table(pa.table({"a": ["1", cell]}), spec)
    _expected, expected_bad = encode_columns([["1", cell]], spec)
    assert bad == expected_bad
    assert (1 in bad) == (cell != "NaN")
