"""Tables from files: the types, ranges and categories of their columns, and every bad input."""

from __future__ import annotations

import datetime
import gzip
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.errors import DataError
from training.data import Dataset, load_dataset
from training.recipe import DataConfig

ROWS = 60
Y = ["no", "yes"] * (ROWS // 2)
X = [round(float(value), 3) for value in np.random.default_rng(0).normal(size=ROWS)]
DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(days=row % 9) for row in range(ROWS)]


def load(path: Path, **settings: Any) -> Dataset:
    settings = {"target": "y", "min_count": 1, **settings}
    return load_dataset(DataConfig(source="table", path=str(path), **settings))


def csv(path: Path, *columns: list[Any], names: str = "x,c,y", between: str = ",") -> Path:
    """Columns as a CSV file; None is an empty cell."""
    lines = [names] + [
        between.join("" if cell is None else str(cell) for cell in row)
        for row in zip(*columns, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": X, **columns}), path)
    return path


def types(dataset: Dataset) -> dict[str, str]:
    return {column.name: column.type for column in dataset.input.columns}


def repeated(*cells: Any) -> list[Any]:
    return [cells[row % len(cells)] for row in range(ROWS)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (repeated("1", "2.5", "-3e2", "?"), "number"),
        (repeated("0", "1"), "number"),
        (repeated("true", "FALSE", ""), "boolean"),
        (repeated("true", "1", "false"), "category"),
        (repeated("2024-01-31", "2023-02-01", None), "date"),
        (repeated("2024-01-31T10:00", "2023-02-01 11:30:05"), "date"),
        (repeated("red", "green", "NA"), "category"),
        (repeated("red", "7", "green"), "category"),
        # Ticket numbers: both kinds all along.
        ([f"A{row % 2}" if row % 3 == 0 else str(row % 29) for row in range(ROWS)], "category"),
    ],
)
def test_the_type_of_a_column_of_texts_is_what_all_its_cells_are(
    tmp_path: Path, cells: list[Any], expected: str
) -> None:
    found = types(load(csv(tmp_path / "t.csv", X, cells, Y)))
    assert found == {"x": "number", "c": expected}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(repeated(1, 2, None)), "number"),
        (pa.array(repeated(Decimal("1.5"), None, Decimal("-2.25"))), "number"),
        (pa.array(np.array(repeated(0.5, 1.5, 9), np.float16)), "number"),
        (pa.array(repeated(True, None, False)), "boolean"),
        (pa.array(repeated("a", "b", None)), "category"),
        (pa.array(repeated("a", "b"), pa.large_string()), "category"),
        (pa.array(repeated("a", "b", None)).dictionary_encode(), "category"),
        (pa.array(repeated(3, 5, 8)).dictionary_encode(), "number"),
        (pa.array(DAYS), "date"),
        (pa.array(DAYS).cast(pa.date64()), "date"),
        (pa.array([10**18 + row for row in range(ROWS)], pa.timestamp("ns")), "date"),
        (pa.array(repeated(0, 10**15, None), pa.timestamp("us", "No/Zone")), "date"),
        (pa.array(repeated(0, 2**60), pa.timestamp("ms")), None),
    ],
)
def test_a_typed_column_keeps_its_type(
    tmp_path: Path, array: pa.Array, expected: str | None
) -> None:
    path = parquet(tmp_path / "t.parquet", c=array, y=Y)
    if expected is None:
        with pytest.raises(DataError, match=r"row \d+: column 'c': expected a date such as"):
            load(path)
        return
    dataset = load(path)
    assert types(dataset) == {"x": "number", "c": expected}
    column = dataset.input.columns[1]
    assert column.missing == "fill"
    raw = np.concatenate([part.raw for part in dataset.parts.values()])
    assert np.isnan(raw[:, 1]).sum() == array.null_count


def test_the_hour_is_a_part_where_dates_have_a_time(tmp_path: Path) -> None:
    days = load(csv(tmp_path / "a.csv", X, DAYS, Y)).input.columns[1]
    assert days.parts == ("timestamp", "year", "month", "day", "weekday")
    assert (days.low, days.high) == ("2024-01-01", "2024-01-09")
    times = [f"{day}T{row % 24:02}:30" for row, day in enumerate(DAYS)]
    column = load(csv(tmp_path / "b.csv", X, times, Y)).input.columns[1]
    assert column.parts == (*days.parts, "hour") and column.low.endswith(":30:00")


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("PassengerId", [7 * row for row in range(ROWS)], "numbers the rows"),
        ("n", list(range(100, 100 + ROWS)), "numbers the rows"),
        ("name", [f"person {row}" for row in range(ROWS)], "identifies the rows"),
        ("same", ["k"] * ROWS, r"constant \('k'\)"),
        ("note", [f"note {row // 2}" for row in range(ROWS)], "free text"),
        ("", repeated("1", "2", "3"), "without a name"),
        ("dropped", repeated("1", "2", "3"), "as data.columns says"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_left_out_and_said(
    tmp_path: Path, name: str, cells: list[Any], reason: str
) -> None:
    path = csv(tmp_path / "t.csv", X, cells, Y, names=f"x,{name},y")
    choice = {name: "drop"} if name == "dropped" else {}
    dataset = load(path, columns=choice)
    assert types(dataset) == {"x": "number"}
    (note,) = dataset.info().notes
    assert note.startswith("left out: ") and re.search(reason, note)
    if name and not choice:
        assert name in types(load(path, columns={name: "category"}))


def test_quantities_are_no_identifiers(tmp_path: Path) -> None:
    ordered = [row + 0.5 for row in range(ROWS)]
    spread = [row * row for row in range(ROWS)]
    dataset = load(csv(tmp_path / "t.csv", ordered, spread, Y, names="x,paid,y"))
    assert types(dataset) == {"x": "number", "paid": "number"} and dataset.notes == ()


def test_a_type_that_is_said_is_taken(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", X, repeated("1", "0", "01"), Y)
    column = load(path, columns={"c": "category"}).input.columns[1]
    assert column.type == "category" and column.categories == ("0", "01", "1")


def test_rare_categories_are_not_listed(tmp_path: Path) -> None:
    cells = ["a"] * 30 + ["b"] * 20 + ["c"] * 8 + ["d", "e"]
    path = csv(tmp_path / "t.csv", X, cells, Y)

    def listed(**settings: Any) -> tuple[str, ...]:
        dataset = load(path, test_fraction=0.02, val_fraction=0.02, **settings)
        return dataset.input.columns[1].categories

    assert set("abc") <= set(listed(min_count=1))
    assert listed(min_count=4) == ("a", "b", "c") and listed(max_categories=2) == ("a", "b")
    assert listed(min_count=1000) == ("a",)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (repeated("10", "9", "2"), ("2", "9", "10")),
        (repeated("0.5", "-1", "10"), ("-1", "0.5", "10")),
        (repeated("b", "10", "9"), ("10", "9", "b")),
        (repeated("True", "false"), ("false", "true")),
    ],
)
def test_labels_of_numbers_are_in_the_order_of_numbers(
    tmp_path: Path, labels: list[str], expected: tuple[str, ...]
) -> None:
    dataset = load(csv(tmp_path / "t.csv", X, X[::-1], labels))
    assert dataset.labels == expected
    assert dataset.info().label_counts == dict.fromkeys(expected, ROWS // len(expected))


def test_blanks_after_commas_and_question_marks_are_read_as_meant(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", X, repeated("u", "?", "v"), Y, between=", ")
    column = load(path).input.columns[1]
    assert column.categories == ("u", "v")
    found = [column.missing for column in load(path, missing="reject").input.columns]
    assert found == ["reject", "fill"]
    assert load(path).labels == ("no", "yes")
    strict = load(csv(tmp_path / "s.csv", X, repeated("u", "v"), Y), missing="reject")
    assert {column.missing for column in strict.input.columns} == {"reject"}


@pytest.mark.parametrize("named", [True, False])
def test_npz_arrays_are_a_table(tmp_path: Path, named: bool) -> None:
    x = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    extra = {"columns": np.array(["left", "right"])} if named else {}
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(ROWS) % 3, **extra)
    dataset = load(tmp_path / "t.npz")
    assert list(types(dataset)) == (["left", "right"] if named else ["x0", "x1"])
    assert dataset.labels == ("0", "1", "2")
    assert sorted(np.concatenate([p.raw for p in dataset.parts.values()])[:, 0]) == sorted(x[:, 0])


def test_files_of_a_folder_are_parts_by_their_names(tmp_path: Path) -> None:
    for name in ("test.csv", "train-1.csv", "train-2.csv", "val_a.csv", "values.csv"):
        csv(tmp_path / name, X, X[::-1], Y)
    rows = load(tmp_path).info().rows
    assert rows == {"train": 3 * ROWS, "validation": ROWS, "test": ROWS}
    other = csv(tmp_path / "of-its-own" / "t.csv", X[:10], X[:10], Y[:10])
    one = load(tmp_path / "train-1.csv", test_path=str(other)).info().rows
    assert one["test"] == 10 and one["train"] + one["validation"] == ROWS


def test_files_may_write_one_type_in_several_ways(tmp_path: Path) -> None:
    texts = pa.array(repeated("u", "v"))
    for number, array in enumerate(
        [texts, texts.cast(pa.large_string()), texts.dictionary_encode(), pa.nulls(ROWS)]
    ):
        parquet(tmp_path / "t" / f"{number}.parquet", c=array, y=Y)
    dataset = load(tmp_path / "t")
    assert types(dataset)["c"] == "category" and sum(dataset.info().rows.values()) == 4 * ROWS


def test_what_the_model_is_told_comes_from_the_training_part_alone(tmp_path: Path) -> None:
    train = csv(tmp_path / "train.csv", X, repeated("u", "v"), Y)
    csv(tmp_path / "test.csv", [1e6] * ROWS, repeated("w", "v"), Y)
    seen = load(tmp_path, val_fraction=0.2)
    assert seen.input == load(train, test_path=str(train), val_fraction=0.2).input
    assert seen.input.columns[0].high == seen.train.raw[:, 0].max() < 1e6
    assert seen.input.columns[1].categories == ("u", "v")
    whole = load(train, val_fraction=0.2, test_fraction=0.2)
    rows = {X.index(value) for value in (*whole.validation.raw[:, 0], *whole.test.raw[:, 0])}
    changed = [1e6 if row in rows else value for row, value in enumerate(X)]
    again = load(csv(train, changed, repeated("u", "v"), Y), val_fraction=0.2, test_fraction=0.2)
    assert again.input == whole.input
    np.testing.assert_array_equal(again.train.raw, whole.train.raw)


def test_the_same_recipe_gives_the_same_fingerprint(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", X, repeated("u", "?", "v"), Y)
    first = load(path).info()
    assert load(path).info() == first and load(path, seed=1).info() != first
    moved = tmp_path / "t.csv.gz"
    moved.write_bytes(gzip.compress(path.read_bytes()))
    assert load(moved).info().fingerprint == first.fingerprint


BAD: dict[str, tuple[Any, str]] = {
    "no target": (
        lambda p: csv(p / "t.csv", X, X, Y, names="x,c,z"),
        r"train: no column 'y' \(data.target\); there are: 'x', 'c', 'z'",
    ),
    "constant target": (lambda p: csv(p / "t.csv", X, X[::-1], ["k"] * ROWS), r"'y': .*two labels"),
    "missing label": (
        lambda p: csv(p / "t.csv", X, X[::-1], [*Y[:7], "?", *Y[8:]]),
        r"train: column 'y': row 7: the label is missing \(rows without a label: 1\)",
    ),
    "quantity": (
        lambda p: csv(p / "t.csv", list(range(1001)), list(range(1001)), list(range(1001))),
        r"at most 1000 labels, found 1001 different values: is it a quantity",
    ),
    "labels of dates": (
        lambda p: parquet(p / "t.parquet", y=pa.array(DAYS)), r"'y': expected labels .*date32",
    ),
    "unknown label": (
        lambda p: csv(
            csv(p / "train.csv", X, X[::-1], Y).parent / "test.csv", X, X, [*Y[1:], "perhaps"]
        ).parent,
        r"test: column 'y': row 59: expected one of the training labels .*'perhaps'",
    ),
    "all missing": (
        lambda p: csv(p / "t.csv", X, repeated("", "NA"), Y), r"'c': all 60 cells are missing",
    ),
    "numbers, then words": (
        lambda p: csv(p / "t.csv", X, [*X[:40], *["low"] * 20], Y),
        r"'c': 40 cells are numbers, but row 40 holds 'low' \(such rows: 20\)",
    ),
    "words among numbers": (
        lambda p: csv(p / "t.csv", X, [*X[:9], "n.a.", *X[10:30], "-", *X[31:]], Y),
        r"'c': 58 cells are numbers, but row 9 holds 'n.a.' \(such rows: 2\)",
    ),
    "a word among dates": (
        lambda p: csv(
            p / "t.csv", X, [*(f"2024-{1 + r % 12:02}-{1 + r // 12:02}" for r in range(59)), "x"], Y
        ),
        r"'c': 59 cells are dates, but row 59 holds 'x'",
    ),
    "other types": (
        lambda p: (
            parquet(p / "a.parquet", c=list(range(ROWS)), y=Y),
            parquet(p / "b.parquet", c=repeated(True, False), y=Y),
        )[0].parent,
        r"b.parquet: column 'c': expected int64 as in the first file, found bool",
    ),
    "other dates": (
        lambda p: (
            parquet(p / "a.parquet", c=DAYS, y=Y),
            parquet(p / "b.parquet", c=pa.array([0] * ROWS, pa.timestamp("s")), y=Y),
        )[0].parent,
        r"files of different types: .*Field c ",
    ),
    "other columns": (
        lambda p: csv(
            csv(p / "train.csv", X, X, Y).parent / "test.csv", X, X, Y, names="x,d,y"
        ).parent,
        r"test.csv: other columns than the first file: missing \['c'\], unknown \['d'\]",
    ),
    "twice": (lambda p: csv(p / "t.csv", X, X, Y, names="x,x,y"), "t.csv: column twice: 'x'"),
    "twice in Parquet": (
        lambda p: pq.write_table(pa.table([X, X, Y], names=list("xxy")), p / "t.parquet") or p,
        r"t.parquet: column twice: 'x'$",
    ),
    "nested": (
        lambda p: parquet(p / "t.parquet", c=[[1]] * ROWS, y=Y), r"'c': expected numbers.*list<",
    ),
    "infinite": (
        lambda p: parquet(p / "t.parquet", c=[1.0, 2.0] * 29 + [float("inf")] * 2, y=Y),
        r"train: row 5[89]: column 'c': expected a finite number, found infinity",
    ),
    "nothing": (lambda p: p / "none.csv", r"none.csv: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
def test_a_bad_table_is_one_line_that_names_the_place(tmp_path: Path, what: str) -> None:
    make, message = BAD[what]
    with pytest.raises(DataError, match=message) as error:
        load(make(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"x,y\n1,a\n2,\xe9t\xe9\n", "t.csv: line 3: expected UTF-8 .*byte 0xe9"),
        ("t.csv", b"x,y\n1,a\n2,b\xc3", "t.csv: line 3: expected UTF-8 .*byte 0xc3"),
        ("t.csv", b"x,y\n1,a\n2,b,3\n4,b\n5\n", r"row 1: expected 2 cells, found 3 .*rows: 2\)"),
        ("t.csv", b"", "t.csv: .*[Ee]mpty"),
        ("t.csv", b"x,y\n", "t.csv: no rows"),
        ("t.csv.gz", b"x,y\n1,a\n", "t.csv.gz: cannot be read"),
        ("t.parquet", b"no table at all", "t.parquet: cannot be read"),
        ("t.npz", b"no table at all", "t.npz: expected an .npz file"),
        ("t.xlsx", b"PK", r"t.xlsx: expected a file that ends in \.csv"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_folders_without_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected files that end in \.csv.*found none"):
        load(tmp_path)
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"x\.csv: cannot be read: .*is a directory"):
        load(tmp_path)
    csv(tmp_path / "only" / "test.csv", X, X, Y)
    with pytest.raises(DataError, match=r"expected files of a training part too"):
        load(tmp_path / "only")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"z": "number"}, r"data\.columns: no column 'z'; there are: 'x', 'c', 'y'"),
        ({"c": "number"}, r"train: row 0: column 'c': expected a number, found 'u'"),
        ({"x": "drop", "c": "drop"}, "no column is left to learn from; left out: column 'x'"),
    ],
)
def test_a_choice_that_cannot_be_is_named(
    tmp_path: Path, choice: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(csv(tmp_path / "t.csv", X, ["u"] * 59 + ["v"], Y), columns=choice)
    with pytest.raises(DataError, match=r"'c': expected texts, numbers or booleans, found dates"):
        load(parquet(tmp_path / "t.parquet", c=DAYS, y=Y), columns={"c": "category"})


def test_a_column_without_a_value_in_the_training_part_is_named(tmp_path: Path) -> None:
    for cell in ("5", "u"):
        for row in range(ROWS):
            path = csv(tmp_path / "t.csv", X, [cell if r == row else "" for r in range(ROWS)], Y)
            whole = load(path, columns={"c": "drop"})
            if X[row] in whole.test.raw:
                break
        with pytest.raises(DataError, match=r"column 'c': no value in the training part"):
            load(path, columns={"c": "number" if cell == "5" else "category"})
