from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts.errors import DataError
from tests.labelled import load

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (PIXELS, PIXELS[:, np.newaxis]),
        (PIXELS[..., np.newaxis], PIXELS[:, np.newaxis]),
        (PIXELS[:, np.newaxis], PIXELS[:, np.newaxis]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
    ],
)
def test_npz_pixels_are_taken_as_they_are(
    tmp_path: Path, x: np.ndarray, expected: np.ndarray
) -> None:
    y = np.array([0, 1, 1, 0])
    np.savez(tmp_path / "x.npz", x=x, y=y, x_test=x[:2], y_test=y[:2], labels=["no", "yes"])
    loaded = load(tmp_path / "x.npz")
    assert loaded.labels == ("no", "yes") and loaded.input.shape == expected.shape[1:]
    for part, rows in (("train", 4), ("test", 2)):
        np.testing.assert_array_equal(loaded.parts[part].raw, expected[:rows])
        assert loaded.parts[part].labels.tolist() == y[:rows].tolist()
        assert loaded.parts[part].raw.flags.c_contiguous
    assert loaded.parts["train"].names[3] == "x.npz row 3"
    assert loaded.parts["test"].names[1] == "x.npz x_test row 1"
    assert loaded.parts["test"].digests.tolist() == loaded.parts["train"].digests[:2].tolist()


def test_npz_labels_may_be_strings(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=PIXELS, y=["b", "a", "a", "c"])
    loaded = load(tmp_path / "x.npz")
    assert loaded.labels == ("a", "b", "c") and loaded.source == "x.npz"
    assert loaded.parts["train"].labels.tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": [0, 1]}, r"expected the arrays x and y, .*found \['y'\]"),
        ({"x": PIXELS, "y": [0, 1, 1, 0], "x_val": PIXELS}, r"found \['x', 'y', 'x_val'\]"),
        ({"x": PIXELS, "y": [0, 1, 1, 0], "x_test": PIXELS}, "x_test and y_test or neither"),
        ({"x": PIXELS / 255, "y": [0, 1, 1, 0]}, r"x: expected uint8 \(0 to 255.*found float64"),
        ({"x": PIXELS[0], "y": [0, 1]}, r"x: expected shape \[N, H, W\].*found \[5, 6\]"),
        ({"x": PIXELS[:0], "y": PIXELS[:0, 0, 0]}, r"found \[0, 5, 6\]"),
        ({"x": COLOUR[..., :2], "y": [0, 1, 1, 0]}, r"found \[4, 5, 6, 2\]"),
        ({"x": COLOUR[:, :3], "y": [0, 1, 1, 0]}, r"\[4, 3, 6, 3\] may be"),
        ({"x": PIXELS, "y": [0, 1]}, "4 pictures in x but 2 labels in y"),
        ({"x": PIXELS, "y": [0, 1, 0, 0.5]}, "y: expected integers or strings.*found float64"),
        ({"x": PIXELS, "y": [[0], [1], [1], [0]]}, r"found int64 \[4, 1\]"),
        ({"x": PIXELS, "y": [0, 1, 5, 0], "labels": ["a", "b"]}, " row 2: label: .*found 5"),
        ({"x": PIXELS, "y": [0, 1, 1, 0], "labels": [1, 2]}, "labels: expected a list of names"),
        ({"x": PIXELS, "y": np.array([0, 1, 1, "a"], dtype=object)}, "not an .npz file of plain"),
        (
            {"x": PIXELS, "y": [0, 1, 1, 0], "x_test": PIXELS[:, :2], "y_test": [0, 1, 1, 0]},
            r"x holds pictures of \[1, 5, 6\], x_test of \[1, 2, 6\]",
        ),
    ],
)
def test_npz_faults_are_named(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=f"^x.npz.*{message}"):
        load(tmp_path / "x.npz")


def test_npz_pixels_are_not_resized_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=PIXELS, y=[0, 1, 1, 0])
    for options in ({"size": (8, 8)}, {"channels": 3}):
        with pytest.raises(DataError, match=r"taken as they are, \[1, 5, 6\]; expected"):
            load(path, **options)
    path.write_bytes(path.read_bytes()[:-90])
    with pytest.raises(DataError, match="x.npz: not an .npz file"):
        load(path)
