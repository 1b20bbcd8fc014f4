"""Scripts of parts: what the command line means, and what RESULTS.md keeps of earlier parts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import results

PARTS = ("quick", "slow", "cuda")


def said(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[str], argparse.Namespace]:
    monkeypatch.setattr(sys, "argv", ["script", "--data", "folder", *words])
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    return results.asked(parser, PARTS, argparse.Namespace, able=PARTS[:2])


def test_without_names_all_parts_are_meant_that_can_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, setting = said(monkeypatch)
    assert wanted == ["quick", "slow"] and vars(setting) == {"data": Path("folder").resolve()}
    assert said(monkeypatch, "cuda", "quick")[0] == ["cuda", "quick"]
    with pytest.raises(SystemExit):
        said(monkeypatch, "quik")
    assert "'quik' (choose from 'quick', 'slow', 'cuda'" in capsys.readouterr().err


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Measured\n\n## A on CPU\n\nold\n\n## Another\n\nstays\n")
    monkeypatch.setattr(results, "RESULTS", file)
    monkeypatch.setattr(results.psutil, "cpu_percent", lambda **_: 7.0)
    return file


def test_parts_that_are_not_measured_keep_their_lines(file: Path, tmp_path: Path) -> None:
    record = tmp_path / "a.json"
    ways = {name: lambda name=name: ([f"{name} 1"], {name: 1}) for name in PARTS}
    results.measure_parts("## B", record, ways, ["slow"], "M of {}.".format)
    results.measure_parts("## B", record, ways, ["quick"], "M of {}.".format)
    busy = "Cores busy just before and after: 7%, 7%."
    assert file.read_text().endswith(
        f"stays\n\n## B\n\nquick 1\n\n(quick: M of quick. {busy})\n\n"
        f"slow 1\n\n(slow: M of slow. {busy})\n"
    )
    assert {name: part["figures"] for name, part in json.loads(record.read_text()).items()} == {
        "quick": {"quick": 1}, "slow": {"slow": 1},
    }  # fmt: skip


def test_each_device_has_a_section_of_its_own(file: Path, tmp_path: Path) -> None:
    record = tmp_path / "a.json"
    record.write_text(json.dumps({"cuda": {"slow": {"machine": "a GPU.", "lines": ["fast"]}}}))
    ways = {name: lambda name=name: [name] for name in PARTS}
    results.measure_parts_on("cpu", "## A on {}", record, ways, ["quick"], "M, {}.".format)
    assert file.read_text() == (
        "# Measured\n\n## A on CPU\n\nquick\n\n(quick: M, CPU only.)\n\n## Another\n\nstays\n\n"
        "## A on CUDA\n\nfast\n\n(slow: a GPU.)\n"
    )
