from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import DataError
from artifacts.pixels import decode_image
from tests.labelled import MUCH, folder, load, noise, save


def huge_png() -> bytes:
    """The header of 20,000 x 20,000 pixels, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def test_class_folders_are_the_classes_in_sorted_order(tmp_path: Path) -> None:
    folder(tmp_path / "set", "wasps", "ants", "bees & flies", "ümläut 蜂")
    loaded = load(tmp_path / "set")
    assert loaded.labels == ("ants", "bees & flies", "wasps", "ümläut 蜂")
    assert loaded.source == "set" and list(loaded.parts) == ["train"] and loaded.notes == ()
    train = loaded.parts["train"]
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert train.labels.dtype == np.int64
    assert train.names[0] == "ants/0.png" and train.names[-1] == "ümläut 蜂/2.png"
    assert list(train.names[3:5]) == ["bees & flies/0.png", "bees & flies/1.png"]
    for row, name in enumerate(train.names):
        data = (tmp_path / "set" / name).read_bytes()
        np.testing.assert_array_equal(train.raw[row], decode_image(data, loaded.input))


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Validation"])
def test_part_folders_are_the_parts(tmp_path: Path, validation: str) -> None:
    places = ("train/a", "train/b", f"{validation}/a", f"{validation}/b", "test/b")
    loaded = load(folder(tmp_path, *places))
    assert {name: part.labels.tolist() for name, part in loaded.parts.items()} == {
        "train": [0, 0, 0, 1, 1, 1], "validation": [0, 0, 0, 1, 1, 1], "test": [1, 1, 1],
    }  # fmt: skip
    assert loaded.parts["test"].names[0] == "test/b/0.png"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load(folder(tmp_path, "train", "plane")).labels == ("plane", "train")


def test_hidden_files_and_other_root_files_are_ignored(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b", ".git")
    for name in ("README.md", "a/.DS_Store", "b/Thumbs.db", "b/desktop.ini"):
        (tmp_path / name).write_text("text")
    assert len(load(tmp_path).parts["train"].labels) == 6


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((), "expected a folder FOLDER/CLASS/.*image and label.*x and y; found an empty folder"),
        (("a",), r"expected at least two class folders, found \['a'\]"),
        (("train/a", "test/a"), r"train: expected at least two class folders, found \['a'\]"),
        (("a", "b", "b/deep"), "b/deep: expected only pictures in a class folder, found a folder"),
        (("train/a", "train/b", "val/c"), r"val/c: expected one of train's 2 classes"),
        (("train/a", "train/b", "extra/a"), "extra: expected only the folders train, val"),
        (("train/a", "train/b", "val/a", "valid/a"), "one folder for validation, found val and v"),
        (("val/a", "val/b", "test/a"), "expected a folder train beside test, val, found none"),
    ],
)
def test_folders_that_are_no_layout_are_named(
    tmp_path: Path, places: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(folder(tmp_path, *places))


def test_a_path_that_holds_nothing_says_what_is_understood(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("x")
    for path, found in ((tmp_path / "no", "nothing"), (tmp_path / "notes.csv", "a file")):
        with pytest.raises(DataError, match=rf"FOLDER/CLASS.*parquet.*npz.*; found {found}"):
            load(path)
    with pytest.raises(DataError, match=r"FOLDER/CLASS.*; found \['notes.csv'\]"):
        load(tmp_path)


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "val/a")
    (tmp_path / "val" / "b").mkdir()
    with pytest.raises(DataError, match="val/b: expected at least one picture, found none"):
        load(tmp_path)


@pytest.mark.parametrize("place", ["", "train/"])
def test_a_picture_without_a_class_is_an_error(tmp_path: Path, place: str) -> None:
    folder(tmp_path, "train/a", "train/b")
    save(tmp_path / place / "loose", noise(0), format="PNG")
    with pytest.raises(DataError, match=f"^{place}loose: expected pictures in class folders alone"):
        load(tmp_path)


def spoil(root: Path) -> dict[str, str]:
    """Bad files of every kind in a/, and what is said of each."""
    whole = io.BytesIO()
    noise(1, 60, 60).save(whole, "JPEG")
    bad = {
        "zero.png": (b"", "the file is empty"),
        "cut.jpg": (whole.getvalue()[:-200], "damaged or cut short"),
        "text.jpg": (b"not a picture", "expected a picture .*found something else"),
        "huge.png": (huge_png(), "at most 50000000 pixels"),
    }
    for name, (data, _) in bad.items():
        (root / "a" / name).write_bytes(data)
    save(root / "a" / "moving.gif", noise(2))
    (root / "a" / "link.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "a" / "pipe.png")
    return {name: message for name, (_, message) in bad.items()} | {
        "moving.gif": "expected a picture .*found something else",
        "link.png": "cannot be read: No such file",
        "pipe.png": "expected a file, found a device or a pipe",
    }


@pytest.mark.parametrize("given", [{}, {"size": (6, 8), "channels": 3}])
@pytest.mark.parametrize("memory_bytes", [MUCH, 0])
def test_every_bad_file_is_named_and_can_be_skipped(
    tmp_path: Path, given: dict[str, object], memory_bytes: int
) -> None:
    clean = load(folder(tmp_path, "a", "b"))
    bad = spoil(tmp_path)
    with pytest.raises(DataError, match=f"cannot be used: {len(bad)} .*--skip-bad") as error:
        load(tmp_path, **given)
    skipped = load(tmp_path, **given, skip_bad=True, memory_bytes=memory_bytes)
    train, expected = skipped.parts["train"], clean.parts["train"]
    assert len(skipped.notes) == len(bad)
    for name, message in bad.items():
        assert pytest.RaisesExc(DataError, match=f"a/{name}: .*{message}").matches(error.value)
        assert sum(note.startswith(f"skipped a/{name}: ") for note in skipped.notes) == 1
    if given:
        assert skipped.input == clean.input
        np.testing.assert_array_equal(train.raw[:], expected.raw)
        np.testing.assert_array_equal(train.digests, expected.digests)
    assert list(train.names) == list(expected.names)
    assert train.labels.tolist() == expected.labels.tolist()


def test_a_class_that_skipping_empties_is_named(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match="class 'c' of train: .*found none that can be used.*1 sk"):
        load(tmp_path, skip_bad=True)
    with pytest.raises(DataError, match="c/x.png: expected a picture"):
        load(tmp_path)


def test_a_file_without_permission_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, "a", "b")
    opened = Path.open

    def refused(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "1.png" and path.parent.name == "b":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    # Root, who may run this, is not refused by the file system.
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match="b/1.png: cannot be read: Permission denied"):
        load(tmp_path)


def test_links_are_followed_and_names_need_no_suffix(tmp_path: Path) -> None:
    folder(tmp_path / "real", "a", "b")
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "set" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "set" / "b" / "picture").symlink_to(tmp_path / "real" / "b" / "0.png")
    assert list(load(tmp_path / "set").parts["train"].names)[-2:] == ["a/2.png", "b/picture"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(6, 8), (6, 8)], (6, 8)),
        ([(256, 256), (256, 256)], (256, 256)),
        ([(6, 257), (6, 257)], (128, 128)),
        ([(6, 8), (8, 6)], (128, 128)),
    ],
)
def test_the_size_is_the_pictures_own_where_they_share_one(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    for label, size in zip("ab", sizes, strict=True):
        save(tmp_path / label / "x.png", noise(0, *size))
    assert load(tmp_path).input.shape == (3, *expected)
    assert load(tmp_path, size=(4, 5)).input.shape == (3, 4, 5)


def test_pictures_on_their_side_count_as_they_are_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a" / "upright.jpg", noise(0, 6, 8))
    save(tmp_path / "b" / "turned.jpg", noise(1, 8, 6), exif=exif)
    save(tmp_path / "b" / "turned.png", noise(1, 8, 6), exif=exif)
    assert load(tmp_path).input.shape == (3, 6, 8)


def test_one_channel_where_all_pictures_are_gray(tmp_path: Path) -> None:
    for label, mode in (("a", "L"), ("b", "I;16")):
        save(tmp_path / label / "x.png", noise(0, mode=mode))
    for mode in ("1", "LA"):
        save(tmp_path / "a" / f"{mode}.png", noise(0, mode="L").convert(mode))
    assert load(tmp_path).input.channels == 1
    assert load(tmp_path, channels=3).input.channels == 3
    save(tmp_path / "b" / "colour.png", noise(0))
    assert load(tmp_path).input.channels == 3
    assert load(tmp_path, channels=1).input.channels == 1


def test_a_resize_that_leaves_nothing_to_cut_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    with pytest.raises(DataError, match=r"^data\.resize: resize 4 is smaller .*\(6 x 8 pixels\)$"):
        load(tmp_path, resize=4)
    with pytest.raises(DataError, match=r"^data\.resize: resize is for fit \"crop\""):
        load(tmp_path, resize=9, fit="stretch")
