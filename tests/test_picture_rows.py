from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts.errors import DataError
from artifacts.pixels import decode_image
from tests.labelled import folder, load, noise, save
from training.pictures import Pictures, find_leaks


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_decode_images_in_memory_and_when_asked_for(
    tmp_path: Path, fit: str, interpolation: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    for number, mode in enumerate(("L", "RGB", "RGBA", "I;16")):
        save(tmp_path / "a" / f"{mode}.png", noise(number, 20, 30, mode), exif=exif)
        save(tmp_path / "b" / f"{number}.webp", noise(number, 9, 30), exif=exif)
        save(tmp_path / "b" / f"{number}.jpg", noise(number, 40, 10), exif=exif)
    options = {"size": (12, 10), "fit": fit, "interpolation": interpolation}
    loaded = load(tmp_path, **options, memory_bytes=12 * 3 * 12 * 10)
    lazy = load(tmp_path, **options, memory_bytes=12 * 3 * 12 * 10 - 1)
    train, rows = loaded.parts["train"], lazy.parts["train"].raw
    assert isinstance(train.raw, np.ndarray) and isinstance(rows, Pictures)
    assert (loaded.input.fit, loaded.input.interpolation) == (fit, interpolation)
    for row, name in enumerate(train.names):
        data = (tmp_path / name).read_bytes()
        np.testing.assert_array_equal(train.raw[row], decode_image(data, loaded.input))
    assert rows.shape == train.raw.shape and rows.dtype == train.raw.dtype
    np.testing.assert_array_equal(rows[:], train.raw)
    np.testing.assert_array_equal(lazy.parts["train"].digests, train.digests)


def test_rows_asked_for_are_indexed_as_an_array_is(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    whole = load(tmp_path).parts["train"].raw
    rows = load(tmp_path, memory_bytes=0).parts["train"].raw
    mask = np.array([True, False, True, False, False, True])
    for key in (slice(1, 5, 2), slice(-2, None), slice(0, 0), np.array([5, 0, 0, -1]), mask, 3):
        np.testing.assert_array_equal(rows[key], whole[key])
        assert rows[key].shape == whole[key].shape and rows[key].dtype == np.uint8
    some = rows.select(mask)
    assert len(some) == 3 and some.shape == (3, 3, 6, 8)
    np.testing.assert_array_equal(some.select(np.array([2, 1]))[:], whole[mask][[2, 1]])
    with pytest.raises(IndexError):
        rows[np.array([6])]


def test_rows_are_cheap_to_send_and_outlive_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "set", "a", "b", rows=50)
    monkeypatch.chdir(tmp_path)
    rows = load(Path("set"), memory_bytes=0).parts["train"].raw
    sent = pickle.dumps(rows)
    assert len(sent) < 8_000
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(sent)[3:7], rows[3:7])


def test_a_file_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    rows = load(folder(tmp_path, "a", "b"), memory_bytes=0).parts["train"].raw
    (tmp_path / "a" / "1.png").write_bytes(b"spoilt")
    (tmp_path / "b" / "2.png").unlink()
    assert rows[np.array([0, 2, 3])].shape == (3, 3, 6, 8)
    with pytest.raises(DataError, match="a/1.png: expected a picture"):
        rows[:]
    with pytest.raises(DataError, match="b/2.png: cannot be read: No such file"):
        rows[-1]


def test_order_and_digests_do_not_depend_on_threads(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b", rows=150)
    one, many = (load(tmp_path, threads=threads).parts["train"] for threads in (1, 8))
    assert list(one.names) == list(many.names)
    np.testing.assert_array_equal(one.raw, many.raw)
    np.testing.assert_array_equal(one.digests, many.digests)
    assert len(set(one.digests.tolist())) == 300


def test_leaks_are_found_exactly(tmp_path: Path) -> None:
    folder(tmp_path, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b")

    def leaks() -> list[str]:
        parts = load(tmp_path).parts
        return find_leaks({name: (part.digests, part.names) for name, part in parts.items()})

    assert leaks() == []
    nearly = np.array(noise(1001))
    nearly[-1, -1, -1] ^= 1
    save(tmp_path / "test" / "a" / "nearly.png", Image.fromarray(nearly))
    assert leaks() == []
    # The same pixels in other bytes.
    save(tmp_path / "test" / "a" / "copy.webp", noise(1001), lossless=True)
    assert leaks() == [
        "leakage: 1 picture of test is also in train (first: test/a/copy.webp is train/b/1.png)"
    ]
    for name in ("x", "y"):
        save(tmp_path / "test" / "b" / f"{name}.png", noise(2001))
    assert leaks()[1:] == [
        "leakage: 2 pictures of test are also in validation (first: test/b/x.png is val/a/1.png)"
    ]


def test_leaks_among_a_million_rows_are_found_in_seconds() -> None:
    generator = np.random.default_rng(0)
    digests = generator.integers(0, 256, (1_000_000, 16), dtype=np.uint8).view("S16").ravel()
    held_out = np.concatenate([digests[:3], digests[-50_000:][::-1]])
    names = range(1_000_000)
    assert find_leaks({"train": (digests[:-50_000], names), "test": (held_out, names)}) == [
        "leakage: 3 pictures of test are also in train (first: 0 is 0)"
    ]
