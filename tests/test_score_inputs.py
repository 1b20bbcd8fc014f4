"""What can be scored: every format and place, and what becomes of files that are not right."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from artifacts.errors import DataError
from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from serving.scoring.job import Options, score
from tests.scored import parts_of, probabilities_of, rejected_of, score_file, table_of


@pytest.fixture(scope="module")
def rows(cancer: Predictor) -> np.ndarray:
    return cancer.golden.raw[np.random.default_rng(0).integers(0, len(cancer.golden.raw), 300)]


def write_tables(folder: Path, table: pa.Table) -> list[str]:
    pq.write_table(table, folder / "a.parquet", row_group_size=30)
    pa.feather.write_feather(table, folder / "b.feather", chunksize=25)
    with (
        pa.OSFile(str(folder / "c.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=25)
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    (folder / "d.jsonl").write_text(lines)
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    buffer = io.StringIO()
    buffer.write(",".join(f'"{name}"' for name in table.column_names) + "\n")
    buffer.writelines(",".join(map(repr, row.values())) + "\n" for row in table.to_pylist())
    (folder / "f.csv").write_text(buffer.getvalue())
    (folder / "g.csv.gz").write_bytes(gzip.compress(buffer.getvalue().encode()))
    matrix = np.stack([table[name].to_numpy() for name in table.column_names[1:]], axis=1)
    np.save(folder / "h.npy", matrix)
    np.savez_compressed(folder / "i.npz", cells=np.asfortranarray(matrix), id=table["id"])
    np.savez_compressed(folder / "j.npz", x=matrix, other=np.zeros((2, 2)))
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_format_of_a_table_gives_the_same_bits(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path, small_units: None, workers: int
) -> None:
    (tmp_path / "in").mkdir()
    _, expected = cancer.run(rows)
    files = write_tables(tmp_path / "in", table_of(cancer, rows))
    for file in files if workers == 1 else ("a.parquet", "f.csv", "j.npz"):
        out = tmp_path / f"out-{file}"
        summary = score_file(cancer, tmp_path / "in" / file, out, workers=workers)
        assert summary["rows_scored"] == 300, (file, summary["reasons"])
        table = parts_of(out)
        np.testing.assert_array_equal(probabilities_of(table, cancer), expected)
        assert table["row"].to_pylist() == list(range(300))
        assert len(summary["parts"]) > 3
        if file < "h":
            assert [int(value) for value in table["id"].to_pylist()] == list(range(300))


def test_arrays_beside_the_rows_are_columns(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", cells=rows, id=np.arange(300) * 7, wide=np.zeros((300, 2)))
    score_file(cancer, tmp_path / "rows.npz", tmp_path / "out", columns=["id"])
    assert parts_of(tmp_path / "out")["id"].to_pylist() == list(range(0, 2100, 7))
    with pytest.raises(DataError, match="has no column 'wide' to be written again, found 'id'"):
        score_file(cancer, tmp_path / "rows.npz", tmp_path / "out2", columns=["wide"])


def test_pictures_in_folders_lists_and_archives(
    digits: Predictor, tmp_path: Path, small_units: None
) -> None:
    raw = digits.golden.raw[:100]
    _, expected = digits.run(raw)
    pictures = tmp_path / "pictures"
    names = [f"{'ab'[i % 2]}/{i:03d}.png" for i in range(100)]
    order = sorted(range(100), key=lambda i: names[i])
    for name, pixels in zip(names, raw, strict=True):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(encode_png(pixels))
    (pictures / "README.txt").write_text("no list")
    (tmp_path / "list.txt").write_text("".join(f"pictures/{name}\n" for name in names) + "\n")
    for archive, mode in (("set.tar", "w"), ("set.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / archive, mode) as tar:
            for i, name in enumerate(names):
                tar.add(pictures / name, f"{i:04d}.png")
                label = io.BytesIO(f"{i % 10}\n".encode())
                info = tarfile.TarInfo(f"{i:04d}.cls")
                info.size = 2
                tar.addfile(info, label)
    lines = [{"b64": base64.b64encode(encode_png(pixels)).decode(), "n": i}
             for i, pixels in enumerate(raw)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for given in ("pictures", "list.txt", "set.tar", "set.tar.gz", "rows.jsonl"):
        out = tmp_path / f"out-{given}"
        summary = score_file(digits, tmp_path / given, out)
        assert summary["rows_scored"] == 100, (given, summary["reasons"])
        table = parts_of(out)
        found = order if given == "pictures" else list(range(100))
        np.testing.assert_array_equal(probabilities_of(table, digits), expected[found])
        if given == "pictures":
            assert table["path"].to_pylist() == [names[i] for i in order]
        if given.startswith("set"):
            assert table["cls"].to_pylist() == [str(i % 10) for i in range(100)]
        if given == "rows.jsonl":
            assert table["n"].to_pylist() == [str(i) for i in range(100)]
    summary = score_file(
        digits, pictures, tmp_path / "labelled", columns=["folder"], target="folder"
    )
    assert summary["target"]["unknown"] == 100 and summary["target"]["unknown_labels"] == {
        "a": 50, "b": 50,
    }  # fmt: skip
    (pictures / "b" / "001.png").unlink()
    (pictures / "a" / "002.png").write_bytes(b"no picture")
    summary = score_file(digits, tmp_path / "list.txt", tmp_path / "out-less")
    assert summary["rows_scored"] == 98
    missing, broken = rejected_of(tmp_path / "out-less")
    assert (missing["row"], broken["row"]) == (1, 2)
    assert "pictures/b/001.png: cannot be read" in missing["reason"]
    (tmp_path / "list.txt.gz").touch()
    with pytest.raises(DataError, match="expected a file that ends in"):
        score_file(digits, tmp_path / "list.txt.gz", tmp_path / "out-none")


def test_a_partitioned_sets_paths_are_columns(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    table = table_of(cancer, rows)
    first = table.column_names[1]
    for day in range(5):
        folder = tmp_path / "set" / f"day=2026-01-0{day + 1}" / f"{first}=12.5"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(60 * day, 60).drop_columns([first]), folder / "p.parquet")
        (folder / "_SUCCESS").touch()
    where = ["day>=2026-01-02", "day!=2026-01-04", "day<2026-01-05"]
    score_file(cancer, tmp_path / "set", tmp_path / "out", where=where)
    found = parts_of(tmp_path / "out")
    chosen = [*range(60, 120), *range(120, 180)]
    assert found["id"].to_pylist() == chosen
    assert set(found["day"].to_pylist()) == {"2026-01-02", "2026-01-03"}
    assert found["file"][0].as_py().endswith(f"set/day=2026-01-02/{first}=12.5/p.parquet")
    changed = rows.copy()
    changed[:, 0] = 12.5
    _, expected = cancer.run(changed)
    np.testing.assert_array_equal(probabilities_of(found, cancer), expected[chosen])
    for wrong, message in (
        (["dya=1"], "no partition 'dya'.*did you mean 'day'"),
        (["day"], "expected NAME=VALUE"),
        (["day=2027-01-01"], "none of 5 files"),
    ):
        with pytest.raises(DataError, match=message):
            score_file(cancer, tmp_path / "set", tmp_path / "none", where=wrong)


def test_files_that_are_not_right_do_not_stop_the_others(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    table = table_of(cancer, rows)
    folder = tmp_path / "in"
    folder.mkdir()
    last = table.column_names[-1]
    pq.write_table(table.slice(0, 50), folder / "a.parquet")
    for file in ("0.parquet", "b.parquet"):
        (folder / file).write_bytes(b"PAR1 but no more")
    pq.write_table(table.slice(50, 50).drop_columns([last]), folder / "c.parquet")
    pq.write_table(table.slice(100, 0), folder / "d.parquet")
    wider = table.slice(100, 50).set_column(0, "id", pa.array(map(str, range(100, 150))))
    pq.write_table(wider.append_column("more", pa.nulls(50)), folder / "e.parquet")
    pq.write_table(table.slice(150, 50).drop_columns(["id"]), folder / "f.parquet")
    pq.write_table(table.slice(200, 50).set_column(0, "id", pa.array(["x"] * 50)),
                   folder / "g.parquet")  # fmt: skip
    pq.write_table(table.slice(250, 50), folder / "h.parquet", compression="none",
                   use_dictionary=False)  # fmt: skip
    damaged = bytearray((folder / "h.parquet").read_bytes())
    # A page's header.
    damaged[4:12] = b"\xff" * 8
    (folder / "h.parquet").write_bytes(damaged)
    summary = score_file(cancer, folder, tmp_path / "out")
    found = parts_of(tmp_path / "out")
    assert found["id"].to_pylist() == [*range(50), *range(100, 150), *[None] * 50]
    assert found.schema.field("id").type == pa.int64()
    assert (summary["rows_in"], summary["rows_scored"]) == (302, 150)
    by_file: dict[str, list[dict[str, Any]]] = {}
    for entry in rejected_of(tmp_path / "out"):
        by_file.setdefault(entry["file"][-9:], []).append(entry)
    assert {file: len(entries) for file, entries in by_file.items()} == {
        "0.parquet": 1, "b.parquet": 1, "c.parquet": 50, "g.parquet": 50, "h.parquet": 50,
    }  # fmt: skip
    for entry in by_file["b.parquet"] + by_file["c.parquet"]:
        assert entry["reason"].count("cannot be read: ") == 1
    assert "this row stands for all from here on" in by_file["b.parquet"][0]["reason"]
    assert f"missing column: '{last}'" in by_file["c.parquet"][0]["reason"]
    assert "column 'id': expected int64 as in the first file" in by_file["g.parquet"][0]["reason"]
    assert [entry["row"] for entry in by_file["h.parquet"]] == list(range(50))


def test_a_cut_off_compressed_text_is_scored_up_to_there(
    cancer: Predictor,
    rows: np.ndarray,
    tmp_path: Path,
    small_units: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.scoring.text._READ_BYTES", 1000)
    (tmp_path / "in").mkdir()
    write_tables(tmp_path / "in", table_of(cancer, rows))
    whole = (tmp_path / "in" / "g.csv.gz").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    summary = score_file(cancer, tmp_path / "cut.csv.gz", tmp_path / "out")
    (entry,) = rejected_of(tmp_path / "out")
    assert 0 < summary["rows_scored"] == entry["row"] < 300
    assert parts_of(tmp_path / "out")["row"].to_pylist() == list(range(entry["row"]))


def test_a_cell_that_is_no_text_is_rejected_with_its_row(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write_tables(tmp_path / "in", table_of(cancer, rows))
    lines = (tmp_path / "in" / "f.csv").read_bytes().split(b"\n")
    lines[3] = b"caf\xe9" + lines[3]
    lines[5] += b",one more"
    (tmp_path / "rows.csv").write_bytes(b"\n".join(lines))
    summary = score_file(cancer, tmp_path / "rows.csv", tmp_path / "out")
    assert (summary["rows_scored"], summary["rows_rejected"]) == (298, 2)
    text, ragged = rejected_of(tmp_path / "out")
    assert (text["row"], text["reason"]) == (2, "column 'id': expected UTF-8")
    assert (ragged["row"], ragged["reason"]) == (4, "expected 31 cells, found 32")


def test_a_line_that_is_no_row_is_rejected_alone(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    good = json.dumps({**table_of(cancer, rows[:1]).to_pylist()[0], "id": {"a": [1, "x"]}})
    first = cancer.manifest.input.columns[0].name
    less = {key: value for key, value in json.loads(good).items() if key != first}
    bad = ["[1]", "{", json.dumps(less), good.replace(": {", ': NaN, "b": {', 1), '{"a": "\ud800"}']
    (tmp_path / "rows.jsonl").write_bytes(
        "\n".join([good, *bad, "", good]).encode("utf-8", "surrogatepass")
    )
    summary = score_file(cancer, tmp_path / "rows.jsonl", tmp_path / "out")
    assert (summary["rows_scored"], summary["rows_rejected"]) == (2, 5)
    assert parts_of(tmp_path / "out")["row"].to_pylist() == [0, 6]
    assert parts_of(tmp_path / "out")["id"].to_pylist() == ['{"a": [1, "x"]}'] * 2
    reasons = [entry["reason"] for entry in rejected_of(tmp_path / "out")]
    assert reasons[0] == "expected an object, found list"
    assert reasons[2] == f"missing column: '{first}'"
    assert reasons[3] == "expected a number, found NaN"


@pytest.mark.parametrize("file", ["a.parquet", "c.arrow", "f.csv", "g.csv.gz"])
def test_a_limit_is_of_the_first_rows(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path, small_units: None, file: str
) -> None:
    (tmp_path / "in").mkdir()
    write_tables(tmp_path / "in", table_of(cancer, rows))
    _, expected = cancer.run(rows)
    for limit in (0, 99, 1000):
        out = tmp_path / f"out{limit}"
        given = [str(tmp_path / "in" / file)] * 2
        summary = score(cancer, given, out, Options(limit=limit))
        assert summary["rows_in"] == min(limit, 600)
        if limit:
            answers = probabilities_of(parts_of(out), cancer)
            np.testing.assert_array_equal(answers, np.tile(expected, (2, 1))[:limit])


def test_a_url_is_read_as_a_file_is(cancer: Predictor, rows: np.ndarray, tmp_path: Path) -> None:
    import fsspec

    table = table_of(cancer, rows)
    pq.write_table(table, tmp_path / "a.parquet")
    memory = fsspec.filesystem("memory")
    memory.mkdir("/set")
    memory.pipe_file("/set/a.parquet", (tmp_path / "a.parquet").read_bytes())
    memory.pipe_file("/set/b.csv", b"id\n1\n")
    summary = score(cancer, ["memory://set"], tmp_path / "out", Options(workers=1))
    assert (summary["rows_scored"], summary["rows_rejected"]) == (300, 1)
    local = score(cancer, [(tmp_path / "a.parquet").as_uri()], tmp_path / "out2")
    assert local["rows_scored"] == 300
    with pytest.raises(DataError, match="nowhere://x: cannot be reached"):
        score(cancer, ["nowhere://x"], tmp_path / "out3")


def test_a_missing_column_is_named_with_the_nearest(
    cancer: Predictor, rows: np.ndarray, tmp_path: Path
) -> None:
    table = table_of(cancer, rows)
    renamed = table.rename_columns([name.replace("mean radius", "mean_radius")
                                    for name in table.column_names])  # fmt: skip
    pq.write_table(renamed, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'mean radius'.*did you mean 'mean_radius'\?"):
        score_file(cancer, tmp_path / "a.parquet", tmp_path / "out")
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"--target: .* has no column 'idx'; did you mean 'id'\?"):
        score_file(cancer, tmp_path / "b.parquet", tmp_path / "out", target="idx")
