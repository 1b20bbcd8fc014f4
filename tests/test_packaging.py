"""What is built from the sources: the wheel (the Bento: tests/test_bento.py)."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT


def test_the_wheel_holds_the_three_rooms_and_no_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "parityline.py",
        "artifacts/manifest.py",
        "training/recipes/digits.toml",
        "training/report/style.css",
        "serving/service.py",
        "serving/page/static/page.html",
        "serving/page/static/page.js",
    ):
        assert name in names
    top = {name.split("/")[0] for name in names}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {
        "artifacts", "parityline.py", "serving", "training",
    }  # fmt: skip
    assert not [name for name in names if name.startswith("artifacts/store")]


def test_the_locks_pin_every_package_with_hashes_and_name_no_index() -> None:
    locks = [ROOT / "requirements.lock", *(ROOT / "serving").glob("*.lock")]
    assert len(locks) == 4
    for lock in locks:
        text = lock.read_text()
        pinned = [line for line in text.splitlines() if line and line[0] not in "# "]
        assert len(pinned) > 50
        assert all("==" in line and line.endswith("\\") for line in pinned)
        assert "index-url" not in text and "://" not in text
