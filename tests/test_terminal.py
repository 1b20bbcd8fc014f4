"""What a person sees on a terminal, what a script gets from a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from artifacts.bundle import Bundle
from artifacts.facts import bundle_facts, list_facts
from artifacts.inputs import Column, TableInput
from artifacts.manifest import Epoch
from artifacts.predictor import Predictor
from artifacts.summary import list_lines, summary_lines
from artifacts.tables import print_bundle, print_list
from artifacts.terminal import printable, tell
from serving.scoring.display import progress_display
from serving.scoring.job import Progress
from tests.conftest import ROOT, Ended
from training.progress import epoch_display
from training.recipe import builtin_recipes
from training.tuning.display import SearchDisplay
from training.tuning.study import Counts

WIDTHS = [60, 80, 200]
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def screen(width: int, show: Callable[[Console], None]) -> list[str]:
    """The lines on a terminal of that width."""
    file = io.StringIO()
    show(Console(file=file, width=width, force_terminal=True, emoji=False, highlight=False))
    return _STYLE.sub("", file.getvalue()).splitlines()


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """All that a command writes to a pseudo-terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "parityline", *arguments], cwd=ROOT, stdin=follower,
        stdout=follower, stderr=follower, env={**os.environ, "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(follower)
    written = b""
    # Linux answers EIO where the other side is closed.
    try:
        while block := os.read(leader, 65536):
            written += block
    except OSError:
        pass
    os.close(leader)
    assert process.wait(timeout=60) == 0, written
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_listed_reference_is_whole_at_every_width(width: int, store: Path) -> None:
    entries = list_facts(store)
    lines = screen(width, lambda console: print_list(console, entries))
    assert max(map(len, lines)) <= width
    for entry in entries:
        (line,) = [line for line in lines if entry["reference"] in line]
        assert line.startswith("*  ")
        assert f"{entry['test']['accuracy']['value']:.4f}" in line
    assert ("log loss" in lines[0]) == (width == 200)


def test_a_reference_too_long_for_the_terminal_is_not_cut(store: Path) -> None:
    (entry, *_) = list_facts(store)
    long = {**entry, "reference": f"{'n' * 64}@0123456789ab"}
    lines = screen(60, lambda console: print_list(console, [long]))
    # The terminal wraps it; copied, it is whole.
    assert any(f"* {long['reference']}  " in line for line in lines)


def test_an_unreadable_bundle_is_listed_with_the_reason(store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "digits" / "0123456789ab"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    (entry,) = list_facts(tmp_path)
    assert entry["reference"] == "digits@0123456789ab" and "not JSON" in entry["error"]
    assert "created" not in entry
    assert any("unreadable" in line for line in list_lines([entry]))
    lines = screen(80, lambda console: print_list(console, [entry]))
    assert lines[0].startswith("digits@0123456789ab  unreadable: ")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_a_shown_bundle_fits_with_all_its_figures(
    width: int, name: str, request: pytest.FixtureRequest
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    bundle, manifest = predictor.bundle, predictor.manifest
    lines = screen(width, lambda console: print_bundle(console, bundle))
    path = [line for line in lines if str(bundle.path) in line]
    assert len(path) == 1
    assert all(len(line) <= width for line in lines if line not in path)
    assert lines[0] == manifest.reference
    text = "\n".join(lines)
    for metrics in manifest.metrics.values():
        for figure in metrics.headline.values():
            assert f"{figure.value:.4f} [{figure.low:.3f}, {figure.high:.3f}]" in text
    for file, info in manifest.files.items():
        assert any(line.startswith(file) and f"{info.size:,}" in line for line in lines)
    assert manifest.speed is not None
    for file, parity in manifest.parity.items():
        speed = manifest.speed.formats[file]
        near, fast = f"{parity.max_abs_diff:.2g} {parity.rows:,}", f"{speed.alone:,.0f}"
        cells = [line.split() for line in lines if line.startswith(file)]
        assert any(set(near.split()) <= set(row) for row in cells)
        assert any({fast, f"{speed.batched:,.0f}"} <= set(row) for row in cells)
    if manifest.input.kind == "table":
        for column in manifest.input.columns:
            assert {f"{column.low:g}", f"{column.high:g}"} <= set(text.split()), column.name


def test_a_hundred_labels_and_three_hundred_columns_stay_readable(cancer: Predictor) -> None:
    column = Column(name="c", low=0, high=1, typical=0.5)
    columns = tuple(column.model_copy(update={"name": f"c{i:03}" + "x" * 60}) for i in range(300))
    manifest = cancer.manifest.model_copy(
        update={
            "labels": tuple(f"label number {i}" for i in range(100)),
            "input": TableInput(columns=columns),
        }
    )
    bundle = replace(cancer.bundle, manifest=manifest)
    lines = screen(80, lambda console: print_bundle(console, bundle))
    assert all(len(line) <= 80 for line in lines if str(bundle.path) not in line)
    assert len(lines) < 100
    assert any("100 labels: label number 0, label number 1" in line for line in lines)
    assert any(line.startswith("and 260 more") for line in lines)


def test_what_would_move_the_cursor_is_shown_as_text(digits: Predictor) -> None:
    assert printable("a\x1b[2Jb\r\x9bc\td\u200be é") == "a\\x1b[2Jb\\r\\x9bc\td\u200be é"
    labels = ("\x1b[2J", *digits.manifest.labels[1:])
    manifest = digits.manifest.model_copy(update={"labels": labels})
    bundle = replace(digits.bundle, manifest=manifest)
    file = io.StringIO()
    print_bundle(Console(file=file, width=80, force_terminal=True), bundle)
    assert "\x1b[2J" not in file.getvalue() and "\\x1b[2J" in file.getvalue()


def test_there_is_colour_on_a_terminal_and_none_where_it_is_not_wanted(store: Path) -> None:
    environment = {"PARITYLINE_STORE": str(store), "TERM": "xterm-256color"}
    coloured = on_a_terminal("list", **environment)
    assert _STYLE.search(coloured)
    plain = _STYLE.sub("", coloured)
    without = on_a_terminal("list", **environment, NO_COLOR="1")
    # Bold and dim are no colours: https://no-color.org
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", without)
    assert _STYLE.sub("", without) == plain
    assert on_a_terminal("list", **{**environment, "TERM": "dumb"}) == plain


def test_recipes_are_wrapped_between_words_on_a_terminal(cli: Callable[..., Ended]) -> None:
    lines = on_a_terminal("recipes", COLUMNS="60").splitlines()
    assert max(map(len, lines)) <= 60
    indent = len(lines[0]) - len(lines[0].split("  ")[-1].lstrip())
    assert all(line[indent - 1] == " " != line[indent] for line in lines)
    words = " ".join(lines).split()
    assert words == cli("recipes").stdout.split() and len(lines) > len(builtin_recipes())


def test_a_pipe_gets_plain_lines(cli: Callable[..., Ended], store: Path, cancer: Predictor) -> None:
    listed = cli("list", PARITYLINE_STORE=str(store), COLUMNS="40")
    lines = listed.stdout.splitlines()
    assert lines == list_lines(list_facts(store)) and len(lines) == 2
    shown = cli("show", "breast-cancer", PARITYLINE_STORE=str(store), COLUMNS="40")
    assert shown.stdout.splitlines() == summary_lines(cancer.bundle)
    assert "\x1b" not in listed.stdout + shown.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_disk_that_is_full_is_one_line(store: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "parityline", "list"], cwd=ROOT, stdout=full,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PARITYLINE_STORE": str(store)},
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == "error: No space left on device\n"


def document(result: Ended) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_json_says_what_is_in_the_store(
    cli: Callable[..., Ended], store: Path, digits: Predictor, cancer: Predictor, tmp_path: Path
) -> None:
    found = document(cli("list", "--json", PARITYLINE_STORE=str(store)))
    assert [entry["reference"] for entry in found] == [
        cancer.manifest.reference, digits.manifest.reference,
    ]  # fmt: skip
    entry = found[1]
    assert set(entry) == {
        "name", "version", "reference", "promoted", "path", "created", "task", "labels", "input",
        "test",
    }  # fmt: skip
    assert entry["promoted"] is True and entry["labels"] == 10
    assert Path(entry["path"]) == digits.bundle.path.absolute()
    accuracy = digits.manifest.metrics["test"].accuracy
    assert entry["test"]["accuracy"] == accuracy.model_dump()
    assert document(cli("list", "--json", PARITYLINE_STORE=str(tmp_path))) == []


def test_json_of_a_bundle_is_its_manifest(
    cli: Callable[..., Ended], store: Path, digits: Predictor
) -> None:
    found = document(cli("show", "digits", "--json", PARITYLINE_STORE=str(store)))
    own = {key: found.pop(key) for key in ("reference", "path", "promoted")}
    assert own == {
        "reference": digits.manifest.reference,
        "path": str(digits.bundle.path.absolute()),
        "promoted": True,
    }
    assert found == digits.manifest.model_dump(mode="json")


def test_json_of_a_check_has_its_numbers(
    cli: Callable[..., Ended], store: Path, digits: Predictor
) -> None:
    arguments = ["verify", "digits", "--device", "cpu", "--json"]
    found = document(cli(*arguments, PARITYLINE_STORE=str(store)))
    assert found == {
        "reference": digits.manifest.reference,
        "path": str(digits.bundle.path.absolute()),
        "backend": "onnx",
        "device": "cpu",
        "files": 8,
        "golden_rows": len(digits.golden.raw),
        "max_abs_diff": digits.checked.max_abs_diff,
        "label_disagreements": 0,
    }


def test_json_of_a_job_is_its_summary_also_where_too_many_rows_are_rejected(
    cli: Callable[..., Ended], store: Path, digits: Predictor, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits.golden.raw)
    (tmp_path / "list.txt").write_text("nowhere.png\n")
    out = tmp_path / "out"
    arguments = ["score", "digits", str(tmp_path / "x.npy"), str(tmp_path / "list.txt")]
    result = cli(
        *arguments, "--out", str(out), "--json", "--max-rejects", "0", "--workers", "1",
        PARITYLINE_STORE=str(store),
    )  # fmt: skip
    assert result.returncode == 1
    assert "--max-rejects: expected at most 0, found 1" in result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((out / "summary.json").read_text())
    assert found["rows_scored"] == len(digits.golden.raw) and found["rows_rejected"] == 1


def test_json_of_a_study_is_the_released_bundle(
    cli: Callable[..., Ended], store: Path, digits: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def released(*_: object, console: Console, **__: object) -> Bundle:
        tell(console, "study: said while it runs")
        return digits.bundle

    # The search itself takes half a minute; see tests/test_tune.py.
    monkeypatch.setattr("training.tuning.tune.tune", released)
    result = cli("tune", "digits", "--json", PARITYLINE_STORE=str(store))
    assert document(result) == bundle_facts(digits.bundle, store)
    assert result.stderr == "study: said while it runs\n"


@pytest.mark.parametrize("command", ["show", "verify"])
def test_an_error_leaves_stdout_empty_for_a_script(
    command: str, cli: Callable[..., Ended], store: Path
) -> None:
    result = cli(command, "digts", "--json", PARITYLINE_STORE=str(store))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no bundle named 'digts'")


def test_a_run_says_plain_lines_to_a_pipe_and_wrapped_ones_to_a_person() -> None:
    path = "/" + "/".join(["folder"] * 20)
    line = f"released: digits@0123456789ab ({path})"
    file = io.StringIO()
    tell(Console(file=file, width=60), line)
    assert file.getvalue() == line + "\n"
    shown = screen(60, lambda console: tell(console, line))
    assert shown[0] == "released     digits@0123456789ab"
    # Longer than the line, and whole all the same.
    assert shown[1].strip() == f"({path})"
    other = "an interrupted run is there: it begins anew"
    assert screen(80, lambda console: tell(console, other)) == [other]


EPOCH = Epoch(
    epoch=100, train_loss=10.5, train_accuracy=0.5, validation_loss=10.5, validation_accuracy=0.5,
    lr=0.1,
)  # fmt: skip


def drawn(display: Callable[[Console], None], width: int = 80, **environment: str) -> str:
    file = io.StringIO()
    display(Console(file=file, width=width, force_terminal=True, _environ=environment))
    return file.getvalue()


@pytest.mark.parametrize("what", ["epochs", "trials", "rows"])
@pytest.mark.parametrize("width", [60, 80])
def test_progress_is_one_line_that_moves(what: str, width: int) -> None:
    def draw(console: Console) -> None:
        if what == "epochs":
            with epoch_display(console, 1000) as show:
                show(EPOCH, 0.1)
        elif what == "trials":
            with SearchDisplay(console, 1000, None) as search:
                search.update(Counts(complete=120, pruned=300, failed=10), (17, 0.9876))
        else:
            with progress_display(console) as scored:
                scored(Progress(0.5, 123_456_789, 123_456_789, 1000, 10.0))

    written = drawn(draw, width, TERM="xterm")
    # Once up, to wipe it at the end: it was never higher than a line.
    assert written.count("\x1b[1A") == 1
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written))
    # Behind it there is room for a ^C.
    assert max(map(len, lines)) <= width - 3
    first = {"epochs": "epoch 100/1000", "trials": "430/1000", "rows": "50%"}[what]
    assert any(first in line for line in lines)


def test_a_dumb_terminal_gets_a_line_an_epoch() -> None:
    def draw(console: Console) -> None:
        with epoch_display(console, 1000) as show:
            show(EPOCH, 0.1)

    written = drawn(draw, TERM="dumb")
    assert written == (
        "epoch 100/1000  loss 10.5000 / validation 10.5000  accuracy 0.5000 / 0.5000  0.10 s\n"
    )
