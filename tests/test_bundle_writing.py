"""A bundle is complete or it does not exist: full disks, killed and concurrent writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import artifacts.bundle
from artifacts.bundle import Bundle, write_bundle
from artifacts.errors import BundleError
from artifacts.manifest import BUNDLE_FILES
from artifacts.references import (
    list_bundles,
)
from tests.conftest import ROOT, parityline
from tests.forgery import files_of


def test_a_full_disk_leaves_nothing_and_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="could not be written: .*No space left"):
        write_bundle(tmp_path / "full", bundle.manifest, files_of(bundle))
    assert list_bundles(tmp_path / "full") == {}
    assert list((tmp_path / "full" / "digits").iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from artifacts import bundle
source = bundle.read_bundle(Path(sys.argv[1]))
files = {name: source.read(name) for name in source.manifest.files}
calls, fsync = 0, os.fsync
def killed(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = killed
bundle.write_bundle(Path(sys.argv[2]), source.manifest, files)
"""


@pytest.mark.parametrize("call", [2, 5, 9, 10])
def test_a_writer_killed_at_any_point_leaves_no_bundle(
    bundle: Bundle, tmp_path: Path, call: int
) -> None:
    store = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_WRITER, str(bundle.path), str(store), str(call)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert list_bundles(store) == {}
    left = list((store / "digits").glob(".tmp-*"))
    assert len(left) == 1
    # The next writer sweeps what the killed one left.
    write_bundle(store, bundle.manifest, files_of(bundle))
    assert not left[0].exists()
    assert list(list_bundles(store)) == ["digits"]


def test_the_manifest_is_written_last(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = artifacts.bundle._write_synced

    def recorded(path: Path, data: bytes) -> None:
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr("artifacts.bundle._write_synced", recorded)
    write_bundle(tmp_path / "store", bundle.manifest, files_of(bundle))
    assert written[-1] == "manifest.json" and sorted(written[:-1]) == sorted(BUNDLE_FILES)


def test_two_writers_at_once_release_one_bundle(bundle: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "shared"
    command = [sys.executable, "-c", KILLED_WRITER, str(bundle.path), str(store), "0"]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert list_bundles(store) == {"digits": [bundle.manifest.version]}
    assert not list((store / "digits").glob(".tmp-*"))


def test_training_killed_during_export_leaves_nothing_that_list_shows(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "parityline", "train", "digits"]
    command += ["--set", "train.epochs=1", "--set", "model.hidden=[8]"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PARITYLINE_STORE": str(store)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # The line after which export begins.
        assert any(line.startswith("test: accuracy") for line in process.stdout)
        time.sleep(0.5)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list_bundles(store) == {}
    result = parityline("list", PARITYLINE_STORE=str(store))
    assert result.returncode == 0 and "no bundles" in result.stdout
