"""A run's record in MLflow, and that nothing which happens to it reaches the run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from artifacts.bundle import Bundle
from artifacts.errors import DataError, ParitylineError
from parityline import app
from tests.conftest import ROOT, free_port
from tests.tracked import POINT, rows, tell_of_a_trial
from training import mlflow_pipe, tracking
from training import run as run_module
from training.interrupts import catch_interrupts
from training.mlflow_names import flat_metrics, flat_params, metric_points, own_tags, trial_params
from training.mlflow_writer import reason_of, without_credentials
from training.recipe import load_recipe
from training.run import run
from training.tracking import Tracker, wanted

SMALL = ["train.epochs=2", "model.hidden=[8]", "export.max_batch_size=64"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where MLflow's default store is; no variable of MLflow's is set."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # A busy machine may take longer than a run would wait.
    monkeypatch.setattr(tracking, "WAIT_S", dict.fromkeys(tracking.WAIT_S, 120.0))
    return tmp_path


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that were started; those that are left are killed."""
    started: list[subprocess.Popen[bytes]] = []
    start = mlflow_pipe._start_writer

    def start_and_note() -> subprocess.Popen[bytes]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(mlflow_pipe, "_start_writer", start_and_note)
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)


def trained(store: Path) -> tuple[Bundle, list[str]]:
    """A small run, recorded, and what it said."""
    said = io.StringIO()
    console = Console(file=said, width=200)
    bundle = run(load_recipe("digits", SMALL), store, promote=True, console=console, track=True)
    return bundle, said.getvalue().splitlines()


def about_tracking(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("tracking: ")]


def test_the_default_store_holds_recipe_curves_figures_and_bundle(
    here: Path, writers: list[subprocess.Popen[bytes]]
) -> None:
    bundle, lines = trained(here / "store")
    manifest = bundle.manifest
    assert about_tracking(lines) == [
        "tracking: MLflow run digits in the working directory (mlflow ui)"
    ]
    assert writers[0].wait(timeout=10) == 0
    found = rows(
        "select runs.status, runs.name, experiments.name, runs.artifact_uri from runs "
        "join experiments using (experiment_id)"
    )
    ((status, name, experiment, artifacts),) = found
    assert (status, name, experiment) == ("FINISHED", "digits", "digits")
    params = dict(rows("select key, value from params"))
    assert params["train.epochs"] == "2" and params["model.hidden"] == "[8]"
    assert params["train.threads"] == str(manifest.recipe["train"]["threads"])
    tags = dict(rows("select key, value from tags"))
    assert tags["parityline.bundle"] == manifest.reference
    assert tags["parityline.data_fingerprint"] == manifest.data.fingerprint
    curve = rows("select step, value from metrics where key = 'validation/loss' order by step")
    assert curve == [(point.epoch, point.validation_loss) for point in manifest.history]
    figures = dict(rows("select key, value from metrics where key like 'final/%'"))
    assert figures["final/test/accuracy"] == manifest.metrics["test"].accuracy.value
    assert figures["final/test/log_loss_high"] == manifest.metrics["test"].log_loss.high
    for file, info in manifest.files.items():
        copy = Path(artifacts) / "bundle" / file
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == info.sha256
    assert (Path(artifacts) / "bundle" / "manifest.json").is_file()


# Several runs by one process, which imports MLflow once; the last by its main().
SEVERAL = """
import json, sys
from training.mlflow_writer import Writer, main
for messages in json.loads(sys.stdin.buffer.readline()):
    writer = Writer()
    for message in messages:
        writer.take(message)
    writer.send()
main()
"""


def test_failed_continued_and_killed_runs_are_recorded_as_such(here: Path) -> None:
    # More of each than MLflow takes at once, and names that it does not take.
    columns = {f"column {number} (cm)/{number}": "number" for number in range(150)}
    params = flat_params({"data": {"columns": columns}, "train": {"lr": 0.5}})

    def start(run_id: str, resumed: bool, params: dict[str, str]) -> dict[str, Any]:
        return {
            "kind": "start", "name": "n", "experiment": "n", "run_id": run_id, "resumed": resumed,
            "params": params, "tags": {"parityline.resumed": str(resumed)}, "time_ms": 1,
        }  # fmt: skip

    def points(steps: range) -> list[dict[str, Any]]:
        return [{"kind": "metrics", "metrics": {"lr": 1.0}, "step": s, "time_ms": s} for s in steps]

    end = {"kind": "end", "state": "FAILED", "time_ms": 3}
    failed = [start("a", False, params), *points(range(1, 1101)), end]
    # Another value of a parameter is what MLflow refuses.
    continued = [start("a", True, params | {"train.lr": "1"}), *points(range(1101, 1103))]
    continued += [{**end, "state": "FINISHED"}]
    other = [start("b", False, {}), {"kind": "tags", "tags": {"parityline.error": "e"}}, end]
    lines = [[failed, continued, other], start("c", False, {}), *points(range(1, 2))]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, str(os.getpid())],
        input="".join(f"{json.dumps(line)}\n" for line in lines),
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["started", "done"]
    states = dict(
        rows(
            "select value, status from runs join tags using (run_uuid) "
            "where key = 'parityline.run_id'"
        )
    )
    assert states == {"a": "FINISHED", "b": "FAILED", "c": "KILLED"}
    counts = rows("select count(*) from metrics group by run_uuid order by 1 desc")
    assert counts == [(1102,), (1,)]
    assert rows("select count(*) from params") == [(151,)]
    assert rows("select value from params where key = 'train.lr'") == [("0.5",)]
    assert rows("select value from tags where key = 'parityline.error'") == [("e",)]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, "the working directory (mlflow ui)"),
        ("sqlite:///a b.db", "sqlite:///a b.db (mlflow ui --backend-store-uri 'sqlite:///a b.db')"),
        (
            "postgresql://me:secret@db/x",
            'postgresql://db/x (mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI")',
        ),
        ("https://me:secret@host", "https://host"),
    ],
)
def test_the_first_line_says_what_to_type_to_see_the_record(
    uri: str | None,
    expected: str,
    tracker: Tracker,
    said: io.StringIO,
    writers: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlflow_pipe, "_WRITER", "")
    with tracker:
        tracker.start("digits", {}, {})
    assert said.getvalue().splitlines()[0] == f"tracking: MLflow run digits in {expected}"


def test_a_server_that_refuses_costs_a_run_one_line(
    here: Path, writers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
    bundle, lines = trained(here / "store")
    assert bundle.path.is_dir() and any(line.startswith("seconds: ") for line in lines)
    began, trouble = about_tracking(lines)
    assert began == f"tracking: MLflow run digits in http://{address}"
    assert "Connection refused" in trouble and address in trouble
    assert "secret" not in "".join(lines)
    assert writers[0].wait(timeout=10) == 0


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def tracker(said: io.StringIO) -> Tracker:
    return tracking.tracking(True, Console(file=said, width=200))


def test_a_server_that_never_answers_holds_a_run_up_for_a_bounded_time(
    tracker: Tracker, said: io.StringIO, writers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAIT_S", {"FINISHED": 0.5})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        with tracker:
            tracker.start("n", {}, {})
            tracker.epoch(POINT)
    _, trouble = said.getvalue().splitlines()
    assert f"has not taken all yet; process {writers[0].pid} goes on" in trouble
    assert writers[0].poll() is None


def test_a_writer_that_dies_costs_one_line(
    tracker: Tracker, said: io.StringIO, writers: list[Any]
) -> None:
    with tracker:
        tracker.start("n", {}, {})
        writers[0].kill()
        writers[0].wait()
        for _ in range(3):
            tracker.epoch(POINT)
        assert said.getvalue().splitlines()[1:] == [
            "tracking: MLflow's process has died; the run goes on without it"
        ]
    assert len(said.getvalue().splitlines()) == 2


def test_a_writer_that_hangs_neither_stops_the_run_nor_fills_its_memory(
    tracker: Tracker, said: io.StringIO, writers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAIT_S", {"FINISHED": 0.2})
    monkeypatch.setattr(mlflow_pipe, "_MOST_KEPT_BYTES", 2**20)
    with tracker:
        tracker.start("n", {}, {})
        writers[0].send_signal(signal.SIGSTOP)
        for _ in range(8_000):
            tracker.epoch(POINT)
        pipe = tracker._pipe
        assert pipe is not None and len(pipe._unsent) <= 2**20 and pipe.lost > 0
    assert len(said.getvalue().splitlines()) == 2


def test_who_interrupts_the_wait_for_the_record_of_a_released_run_ends_just_that(
    tracker: Tracker, said: io.StringIO, writers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = select.poll

    def interrupted() -> select.poll:
        signal.raise_signal(signal.SIGINT)
        return poll()

    with catch_interrupts(), tracker:
        tracker.start("n", {}, {})
        writers[0].send_signal(signal.SIGSTOP)
        monkeypatch.setattr(select, "poll", interrupted)
    assert said.getvalue().splitlines()[-1].endswith(f"process {writers[0].pid} goes on with it")


def test_an_error_and_its_state_are_the_last_that_is_sent(
    tracker: Tracker, writers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Instead of the writer: it keeps what it is told.
    keep = "import sys; open('sent', 'w').writelines(sys.stdin.readline() for _ in range(3))"
    monkeypatch.setattr(mlflow_pipe, "_WRITER", keep)
    for error, state, line in (
        (DataError("no rows"), "FAILED", "no rows"),
        (KeyError("lr"), "FAILED", "KeyError('lr')"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt()"),
    ):
        with pytest.raises(type(error)):
            failing(tracker, error)
        assert writers[-1].wait(timeout=10) == 0
        first, tags, end = map(json.loads, Path("sent").read_text().splitlines())
        assert first["run_id"] == tracker.run_id == "old" and first["resumed"] is True
        assert first["params"] == {"a.b": "null"}
        assert first["tags"]["mlflow.source.git.commit"] == "12"
        assert tags["tags"] == {"parityline.error": line}
        assert (end["kind"], end["state"]) == ("end", state)


def failing(tracker: Tracker, error: BaseException) -> None:
    with tracker:
        tracker.start("n", {"a": {"b": None}}, {"commit": "12+changes"}, "old", resumed=True)
        raise error


def test_a_tracker_that_is_off_starts_nothing(said: io.StringIO, writers: list[Any]) -> None:
    with tracking.tracking(False, Console(file=said)) as tracker:
        tracker.start("n", {}, {})
        tracker.epoch(POINT)
        tell_of_a_trial(tracker, "b")
        assert tracker.run_id is None
    assert not writers and not said.getvalue()


def test_what_is_asked_for_comes_before_the_variable_and_that_before_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert wanted(True) and not wanted(None) and not wanted(False)
    monkeypatch.setenv("PARITYLINE_TRACK", "1")
    assert wanted(None) and not wanted(False)
    monkeypatch.delenv("PARITYLINE_TRACK")
    assert wanted(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not wanted(None)
    with pytest.raises(ParitylineError, match=r"pip install 'parityline\[track\]'"):
        wanted(True)
    monkeypatch.setenv("PARITYLINE_TRACK", "yes")
    with pytest.raises(DataError, match="PARITYLINE_TRACK: expected 0 or 1, found 'yes'"):
        wanted(None)


@pytest.mark.parametrize(
    ("options", "track"), [([], False), (["--track"], True), (["--no-track"], False)]
)
def test_the_command_line_says_whether_to_track(
    options: list[str], track: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(run_module, "run", lambda *_, track, **__: asked.append(track))
    assert CliRunner().invoke(app, ["train", "digits", *options]).exit_code == 0
    assert asked == [track]


def test_names_are_those_that_mlflow_takes() -> None:
    params = flat_params({"a": {"x/y": 1, "..": "t", "z (µm)": None}, "l": [1, "b"], "e": {}})
    assert params == {"a.x_y": "1", "a._": "t", "a.z _µm_": "null", "l": '[1, "b"]'}
    assert len(next(iter(flat_params({"k" * 999: 1})))) == 250
    params = trial_params({"model.hidden[0]": 8, "at": Path("x")})
    assert params == {"model.hidden.0": "8", "at": '"x"'}
    assert metric_points({"best/a[0]": 1, "text": "t"}) == {"best/a_0_": 1.0}  # type: ignore[dict-item]
    assert own_tags({"a/b": "x" * 9999, "none": None}) == {"parityline.a_b": "x" * 6000}
    metrics = flat_metrics({"test": {"rows": 3, "auc": None, "f1": {"value": 0.5, "low": 0.25}}})
    assert metrics == {"final/test/rows": 3, "final/test/f1": 0.5, "final/test/f1_low": 0.25}


def test_a_reason_is_one_line_of_the_innermost_error_without_passwords() -> None:
    outer = RuntimeError("outer")
    outer.__cause__ = ConnectionError("no route\n to https://me:secret@host/x")
    assert reason_of(outer) == "no route to https://host/x"
    assert reason_of(ValueError()) == "ValueError"
    assert without_credentials("postgresql://u:p@db/x") == "postgresql://db/x"
