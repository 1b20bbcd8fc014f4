"""A user's own table and folder of pictures, from files to answers, by every way in."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from artifacts.inputs import CategoryColumn, DateColumn
from artifacts.predictor import Predictor, open_predictor
from artifacts.references import open_reference
from tests.answers import probabilities_in
from tests.conftest import Server, parityline, start_server, stop_server, wait_until_ready
from tests.scored import parts_of, rejected_of, score_file

ROWS = 400
# Rows as a caller may send them: everything missing, never seen, wild.
ODD_ROWS = [
    {"age": None, "plan": None, "active": None, "since": None, "city": None},
    {"age": 1e300, "plan": "never seen", "active": True, "since": "1900-01-01", "city": "?"},
    {"age": -1e300, "plan": " basic ", "active": False, "since": "2999-12-31", "city": "Zürich"},
    {"age": 33.5, "plan": "pro", "active": "true", "since": "2020-02-29", "city": "rare-7"},
]


def table_rows() -> list[dict[str, object]]:
    """A label that depends on every column, with missing cells all over."""
    draw = random.Random(0)
    rows = []
    for number in range(ROWS):
        age, plan = draw.gauss(40, 12), draw.choice(["basic", "pro", "team, large"])
        active, year = draw.random() < 0.5, draw.randint(2015, 2024)
        city = draw.choice(["Zürich", "São Paulo", "New York", f"rare-{number}"])
        score = age / 12 + 2 * (plan == "pro") + active + (year - 2020) / 3 + draw.gauss(0, 0.5)
        row: dict[str, object] = {
            "customer id": f"C{number:05}",
            "age": round(age, 1),
            "plan": plan,
            "active": str(active).lower(),
            "since": f"{year}-0{draw.randint(1, 9)}-15",
            "city": city,
            "always": "same",
            "churned": "yes" if score > 4.6 else "no",
        }
        for name in ("age", "plan", "active", "since", "city"):
            if draw.random() < 0.05:
                row[name] = draw.choice(["", "NA", "?"])
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a table model and a picture model, each trained by the command line."""
    home = tmp_path_factory.mktemp("own data")
    rows = table_rows()
    with (home / "customers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = parityline(
        "train", "table", "--data", str(home / "customers.csv"), "--target", "churned",
        "--name", "churn", "--set", "train.epochs=12", "--set", "train.threads=1",
        "--set", "model.members=4", "--set", "export.max_batch_size=64",
        PARITYLINE_STORE=str(home / "store"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (home / "log.txt").write_text(done.stdout, encoding="utf-8")
    write_pictures(home / "round things")
    done = parityline(
        "train", "images", "--data", str(home / "round things"), "--name", "shapes",
        "--set", "train.epochs=4", "--set", "train.threads=1", "--set", "model.channels=[8,16]",
        "--set", "export.max_batch_size=64", "--set", "train.augment.crop=2",
        PARITYLINE_STORE=str(home / "store"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home


def write_pictures(folder: Path) -> None:
    """Bright and dark pictures of several sizes, modes and formats."""
    generator = np.random.default_rng(0)
    for name, level in (("bright ☀", 200), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            shape = (20 + number % 5, 24, 3)
            pixels = np.clip(generator.normal(level, 40, shape), 0, 255).astype(np.uint8)
            mode = ("RGB", "RGBA", "L")[number % 3]
            suffix = ("png", "webp", "jpg")[number % 3]
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.{suffix}")


@pytest.fixture(scope="module")
def churn(home: Path) -> Predictor:
    return opened(home, "churn")


@pytest.fixture(scope="module")
def shapes(home: Path) -> Predictor:
    return opened(home, "shapes")


def opened(home: Path, name: str, backend: str = "onnx") -> Predictor:
    bundle = open_reference(home / "store", name)
    return open_predictor(bundle, backend=backend, device="cpu", threads=1)


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    running = start_server(
        home / "server.log", PARITYLINE_STORE=str(home / "store"), PARITYLINE_BUNDLE="churn"
    )
    wait_until_ready(running)
    yield running
    stop_server(running)


def test_the_schema_says_what_was_inferred_and_left_out(home: Path, churn: Predictor) -> None:
    columns = {column.name: column for column in churn.manifest.input.columns}
    assert {name: column.type for name, column in columns.items()} == {
        "age": "number", "plan": "category", "active": "boolean", "since": "date",
        "city": "category",
    }  # fmt: skip
    assert isinstance(columns["plan"], CategoryColumn)
    assert columns["plan"].categories == ("basic", "pro", "team, large")
    assert isinstance(columns["since"], DateColumn) and "hour" not in columns["since"].parts
    log = (home / "log.txt").read_text(encoding="utf-8")
    for line in (
        "left out: column 'customer id': it identifies the rows",
        "left out: column 'always': it is constant ('same')",
        "category  3 categories: basic, pro, team, large",
    ):
        assert line in log
    assert [note.split(": ")[1] for note in churn.manifest.data.notes] == [
        "column 'customer id'", "column 'always'",
    ]  # fmt: skip


def test_what_was_learnt_is_better_than_the_commoner_label(churn: Predictor) -> None:
    test = churn.manifest.metrics["test"]
    counts = churn.manifest.data.label_counts
    assert test.accuracy.value > max(counts.values()) / ROWS + 0.1
    assert test.auc is not None and test.auc.value > 0.8


def test_cells_have_bit_for_bit_one_answer_by_every_way_in(
    churn: Predictor, server: Server, tmp_path: Path
) -> None:
    """Promise 2 for every type of column, with missing cells and categories never seen."""
    known = [
        {name: value for name, value in row.items() if name in ODD_ROWS[0]}
        for row in table_rows()[:40]
    ]
    rows = ODD_ROWS + [
        {**row, "age": None if row["age"] in {"", "NA", "?"} else row["age"]} for row in known
    ]
    names = list(ODD_ROWS[0])
    with server.client() as client:
        answers = client.post("/predict", json={"instances": rows})
        alone = [client.post("/predict", json={"instances": [row]}) for row in rows[:6]]
    online = probabilities_in(answers, churn)
    for index, answer in enumerate(alone):
        np.testing.assert_array_equal(probabilities_in(answer, churn)[0], online[index])
    predicted = churn.predict({name: [row[name] for row in rows] for name in names})
    np.testing.assert_array_equal(predicted.probabilities, online)
    texts = {
        name: ["" if row[name] is None else str(row[name]).strip() for row in rows]
        for name in names
    }
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*texts.values(), strict=True))
    pq.write_table(pa.table(texts), tmp_path / "rows.parquet")
    for file in ("rows.csv", "rows.parquet"):
        out = tmp_path / f"out-{file}"
        assert score_file(churn, tmp_path / file, out)["rows_scored"] == len(rows)
        scored = parts_of(out)
        offline = [scored[f"probability_{label}"] for label in churn.manifest.labels]
        np.testing.assert_array_equal(np.stack(offline, axis=1), online)


def test_a_bad_cell_is_named_by_every_way_in(
    churn: Predictor, server: Server, tmp_path: Path
) -> None:
    row = {**ODD_ROWS[3], "since": "yesterday"}
    with server.client() as client:
        answer = client.post("/predict", json={"instances": [ODD_ROWS[3], row]})
    message = "column 'since': expected a date such as 2026-01-31, found 'yesterday'"
    assert answer.status_code == 400 and answer.json() == {"error": f"instances[1]: {message}"}
    pq.write_table(
        pa.table({name: [str(cell)] for name, cell in row.items()}), tmp_path / "r.parquet"
    )
    assert score_file(churn, tmp_path / "r.parquet", tmp_path / "out")["rows_rejected"] == 1
    assert [entry["reason"] for entry in rejected_of(tmp_path / "out")] == [message]


@pytest.mark.parametrize("backend", ["torchscript", "export", "eager"])
@pytest.mark.parametrize("name", ["churn", "shapes"])
def test_every_backend_opens_and_agrees(home: Path, name: str, backend: str) -> None:
    onnx, other = opened(home, name), opened(home, name, backend)
    expected, found = (predictor.run(predictor.golden.raw)[0] for predictor in (onnx, other))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def test_encoded_files_have_one_answer_alone_and_in_any_batch(
    home: Path, shapes: Predictor
) -> None:
    files = [file.read_bytes() for file in sorted((home / "round things").glob("*/*"))]
    together = shapes.predict(files)
    for index in (0, 1, 2, 41, 79):
        alone = shapes.predict([files[index]])
        np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[index])
    truth = [file.parent.name for file in sorted((home / "round things").glob("*/*"))]
    assert np.mean([a == b for a, b in zip(together.label, truth, strict=True)]) > 0.9
