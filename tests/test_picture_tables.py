from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.errors import DataError
from artifacts.pixels import decode_image
from tests.labelled import MUCH, load, png
from training.pictures import Pictures

NAMES = ["cat", "ant", "bee"]


def features(names: list[str] | None) -> dict[bytes, bytes] | None:
    if names is None:
        return None
    label = {"names": names, "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return {b"huggingface": json.dumps(info).encode()}


def write(
    path: Path,
    labels: object,
    *,
    names: list[str] | None = NAMES,
    images: list[bytes | None] | None = None,
    column: str = "image",
    plain: bool = False,
    seed: int = 0,
) -> Path:
    labels = pa.array(labels)
    images = [png(seed + row) for row in range(len(labels))] if images is None else images
    if not plain:
        images = [None if data is None else {"bytes": data, "path": "x.png"} for data in images]
    kind = pa.binary() if plain else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({column: pa.array(images, kind), "label": labels})
    pq.write_table(table.replace_schema_metadata(features(names)), path)
    return path


@pytest.mark.parametrize("memory_bytes", [MUCH, 0])
@pytest.mark.parametrize(("column", "plain"), [("image", False), ("img", False), ("image", True)])
def test_parquet_rows_are_pictures_with_the_class_names_of_the_metadata(
    tmp_path: Path, column: str, plain: bool, memory_bytes: int
) -> None:
    labels = [2, 0, 1, 1, 2]
    path = write(tmp_path / "test.parquet", labels, column=column, plain=plain)
    loaded = load(path, memory_bytes=memory_bytes)
    # One file is no split, whatever its name.
    assert loaded.labels == tuple(NAMES) and list(loaded.parts) == ["train"]
    train = loaded.parts["train"]
    assert loaded.source == "test.parquet" and train.labels.tolist() == labels
    assert train.labels.dtype == np.int64 and train.names[4] == "test.parquet row 4"
    assert isinstance(train.raw, Pictures) == (memory_bytes == 0)
    expected = np.stack([decode_image(png(row), loaded.input) for row in range(5)])
    np.testing.assert_array_equal(train.raw[:], expected)


def test_files_are_parts_by_the_start_of_their_names(tmp_path: Path) -> None:
    for seed, name in enumerate(("validation-0", "train-01", "train-00", "test-0")):
        write(tmp_path / f"{name}.parquet", [0, 1, 2], seed=10 * seed)
    (tmp_path / "README.md").write_text("text")
    parts = load(tmp_path).parts
    assert list(parts) == ["train", "validation", "test"]
    assert list(parts["train"].names[2:4]) == [
        "train-00.parquet row 2", "train-01.parquet row 0",
    ]  # fmt: skip
    expected = decode_image(png(20), load(tmp_path).input)
    np.testing.assert_array_equal(parts["train"].raw[0], expected)
    write(tmp_path / "other.parquet", [0, 1, 2])
    with pytest.raises(DataError, match="other.parquet: expected a name that starts with train"):
        load(tmp_path)


def test_files_without_such_names_are_all_for_training(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.parquet", [0, 1, 2])
    train = load(tmp_path).parts["train"]
    assert [train.names[0], train.names[3]] == ["a.parquet row 0", "b.parquet row 0"]


@pytest.mark.parametrize(
    ("labels", "names", "expected", "indices"),
    [
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1]),
        (["bee", "cat", "ant"], NAMES, ("cat", "ant", "bee"), [2, 0, 1]),
        ([10, 2, 10], None, ("2", "10"), [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, ("a", "b"), [1, 0, 1]),
        (pa.array([1, 0, 1], pa.uint8()), ["x", "y"], ("x", "y"), [1, 0, 1]),
    ],
)
def test_labels_are_numbers_or_strings(
    tmp_path: Path, labels: object, names: list[str] | None, expected: object, indices: list[int]
) -> None:
    loaded = load(write(tmp_path / "x.parquet", labels, names=names))
    assert loaded.labels == expected and loaded.parts["train"].labels.tolist() == indices


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, None, 2], NAMES, "x.parquet row 2: label: the value is missing"),
        ([0, 1, 2] * 100 + [None], NAMES, "x.parquet row 300: label: the value is missing"),
        ([0, 1, 2, 3], NAMES, r"row 3: label: expected one of 3 classes \(0 to 2\), found 3"),
        ([0, -1, 2], NAMES, "row 1: label: expected one of 3 classes .*found -1"),
        ([0, -1, 2], None, "row 1: label: expected 0 or more, found -1"),
        (["ant", "dog", "cat", "bee"], NAMES, "row 1: label: expected one of 3 .*found dog"),
        ([0.5, 1.0], NAMES, "x.parquet: column 'label': expected integers or strings, found doub"),
        (pa.array([0, 2**63], pa.uint64()), NAMES, "x.parquet: cannot be read: .*not in range"),
        ([1, 1], None, r"expected at least two classes, each once, found \['1'\]"),
        ([0, 1], ["a", "a"], r"expected at least two classes, each once, found \['a', 'a'\]"),
        ([0, 1], NAMES, "class 'bee' of train: expected at least one picture, found none$"),
    ],
)
def test_labels_that_cannot_be_used_are_named(
    tmp_path: Path, labels: object, names: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "x.parquet", labels, names=names), skip_bad=True)


def test_a_class_that_train_lacks_is_an_error_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["a", "b"], names=None)
    write(tmp_path / "test.parquet", ["a", "c"], names=None)
    with pytest.raises(DataError, match=r"test.parquet row 1: label: .*\(a to b\), found c"):
        load(tmp_path)


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 1, 2])
    write(tmp_path / "test.parquet", [0, 1, 2], names=["x", "y", "z"])
    with pytest.raises(DataError, match="train.parquet and test.parquet differ"):
        load(tmp_path)
    write(tmp_path / "test.parquet", ["cat"])
    with pytest.raises(DataError, match="test: expected labels of the same type"):
        load(tmp_path)
    write(tmp_path / "train-2.parquet", ["cat"])
    with pytest.raises(DataError, match="train: expected labels of one type"):
        load(tmp_path)


def test_columns_and_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for table, message in (
        ({"picture": [b""], "label": [0]}, r"column 'image' or 'img' .*found \['picture', 'label'"),
        ({"image": [b""], "labels": [0]}, r"column 'label', found \['image', 'labels'\]"),
        ({"image": ["x"], "label": [0]}, "column 'image': .*found string"),
        ({"image": [{"path": "x"}], "label": [0]}, "column 'image': .*found struct"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "rows, found no"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=f"x.parquet.*{message}"):
            load(path)
    write(path, [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="x.parquet: cannot be read"):
        load(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"found both \(folder\)"):
        load(tmp_path)


@pytest.mark.parametrize("memory_bytes", [MUCH, 0])
def test_bad_rows_are_named_and_can_be_skipped(tmp_path: Path, memory_bytes: int) -> None:
    good = [png(row) for row in range(400)]
    images: list[bytes | None] = list(good)
    images[17], images[20], images[300] = None, b"", good[300][:-40]
    path = write(tmp_path / "train.parquet", [row % 3 for row in range(400)], images=images)
    reasons = (
        "train.parquet row 17: the value is missing",
        "train.parquet row 20: the value is empty",
        "train.parquet row 300: the picture is damaged or cut short",
    )
    with pytest.raises(
        DataError, match="\n  ".join(("cannot be used: 3 .*--skip-bad.*", *reasons))
    ):
        load(path)
    loaded = load(path, skip_bad=True, memory_bytes=memory_bytes)
    train = loaded.parts["train"]
    kept = np.setdiff1d(np.arange(400), [17, 20, 300])
    for note, reason in zip(loaded.notes, reasons, strict=True):
        assert note.startswith(f"skipped {reason}")
    assert list(train.names) == [f"train.parquet row {row}" for row in kept]
    assert train.labels.tolist() == (kept % 3).tolist()
    expected = np.stack([decode_image(good[row], loaded.input) for row in kept])
    np.testing.assert_array_equal(train.raw[:], expected)


def test_the_temporary_copy_is_for_rows_asked_for_and_goes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.parquet", [0, 1, 2])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    kept = load(path)
    assert not list((tmp_path / "spool").iterdir())
    lazy = load(path, memory_bytes=0)
    rows = lazy.parts["train"].raw.select(np.array([2, 1]))
    del lazy
    sent = pickle.dumps(rows)
    assert b"PNG" not in sent
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy[:], kept.parts["train"].raw[[2, 1]])
    del copy
    np.testing.assert_array_equal(rows[:], kept.parts["train"].raw[[2, 1]])
    del rows
    assert not list((tmp_path / "spool").iterdir())


LOAD_AND_FORK = """
import os
from pathlib import Path
from tests.labelled import load

kept = load(Path("x.parquet"), memory_bytes=0)
if not os.fork():
    del kept
    os._exit(0)
os.wait()
print(len(list(Path("spool").iterdir())), len(kept.parts["train"].raw[:]))
"""


def test_the_temporary_copy_goes_with_its_process_and_not_with_a_worker(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [0, 1, 2])
    (tmp_path / "spool").mkdir()
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_FORK],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "spool"), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1 3\n" and not list((tmp_path / "spool").iterdir())
