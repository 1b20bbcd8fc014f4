"""What is built from the sources: the wheel, and the Bento."""

from __future__ import annotations

import os
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
        "serving/service.py",
    ):
        assert name in names
    top = {name.split("/")[0] for name in names}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {
        "artifacts", "parityline.py", "serving", "training",
    }  # fmt: skip
    assert not [name for name in names if name.startswith("artifacts/store")]


def test_the_bento_holds_what_serving_needs_and_nothing_of_training(tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (source,) = tmp_path.glob("bentos/classifier/*/src")
    assert (source / "serving" / "service.py").is_file()
    assert (source / "artifacts" / "manifest.py").is_file()
    assert not (source / "training").exists() and not (source / ".venv").exists()
    requirements = (source.parent / "env" / "python" / "requirements.txt").read_text()
    assert "bentoml==" in requirements and "--hash=sha256:" in requirements
    assert "\ntorch==" not in requirements and "scikit-learn" not in requirements


def test_the_locks_pin_every_package_with_hashes_and_name_no_index() -> None:
    for name in ("requirements.lock", "serving/requirements.lock"):
        text = (ROOT / name).read_text()
        pinned = [line for line in text.splitlines() if line and line[0] not in "# "]
        assert len(pinned) > 50
        assert all("==" in line and line.endswith("\\") for line in pinned)
        assert "index-url" not in text and "://" not in text
