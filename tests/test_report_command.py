"""`parityline report`: a bundle's page as a file, or several bundles in one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.bundle import Bundle, read_bundle
from tests.conftest import Ended
from tests.test_rooms import modules_after


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_report_is_made_again_beside_the_bundle_not_in_it(
    bundle: Bundle, here: Path, cli: Callable[..., Ended]
) -> None:
    ended = cli("report", str(bundle.path))
    name = f"digits-{bundle.manifest.version}.html"
    assert (ended.returncode, ended.stdout.strip()) == (0, name)
    assert (here / name).read_bytes() == bundle.read("report.html")
    assert [entry.name for entry in here.iterdir()] == [name]
    # Again, over the one that is there; and under another name.
    assert cli("report", str(bundle.path)).returncode == 0
    assert cli("report", str(bundle.path), "--out", "mine.html").stdout.strip() == "mine.html"
    assert (here / "mine.html").read_bytes() == bundle.read("report.html")
    read_bundle(bundle.path)


def test_a_report_that_cannot_be_written_is_one_line(
    bundle: Bundle, here: Path, cli: Callable[..., Ended]
) -> None:
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    for out, message in (
        ("folder", "folder: expected a file, found a directory"),
        ("pipe", "pipe: expected a file, found something else"),
        ("nowhere/report.html", "nowhere/report.html: could not be written: No such file"),
        (str(bundle.path / "report.html"), "a bundle stays as it was released"),
        (str(bundle.path / "new.html"), "a bundle stays as it was released"),
    ):
        ended = cli("report", str(bundle.path), "--out", out)
        assert ended.returncode == 1 and message in ended.stderr, ended
        assert ended.stderr.count("\n") == 1 and not ended.stdout
    assert (here / "pipe").is_fifo()
    assert sorted(entry.name for entry in here.iterdir()) == ["folder", "pipe"]
    read_bundle(bundle.path)


def test_a_link_to_a_report_stays_one(
    bundle: Bundle, here: Path, cli: Callable[..., Ended]
) -> None:
    (here / "pages").mkdir()
    (here / "latest.html").symlink_to("pages/digits.html")
    assert cli("report", str(bundle.path), "--out", "latest.html").returncode == 0
    assert (here / "latest.html").is_symlink()
    assert (here / "pages" / "digits.html").read_bytes() == bundle.read("report.html")


def test_several_bundles_are_compared(
    use_store: Path, here: Path, cli: Callable[..., Ended]
) -> None:
    ended = cli("report", "digits", "breast-cancer")
    assert (ended.returncode, ended.stdout.strip()) == (0, "comparison.html"), ended
    page = (here / "comparison.html").read_text()
    assert "2 classifiers compared" in page and "Not the same labels" in page
    ended = cli("report", "digits", "nobody")
    assert ended.returncode == 1 and "no bundle named 'nobody'" in ended.stderr


def test_a_report_needs_neither_torch_nor_a_training_library() -> None:
    loaded = modules_after(
        "import training.report.command, training.report.page, training.report.compare"
    )
    assert "markupsafe" in loaded
    assert not loaded & {"torch", "sklearn", "torchmetrics", "bentoml", "serving", "onnxruntime"}
