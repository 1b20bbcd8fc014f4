"""The same job on a real Ray of two CPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from artifacts.errors import DataError
from artifacts.predictor import Predictor
from serving.scoring.job import Options, score
from serving.scoring.on_ray import ray_engine
from tests.scored import parts_of, rejected_of
from tests.test_score_again import bytes_of

ray = pytest.importorskip("ray")
# Of Ray's own options, as it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # Its processes are started elsewhere, and import what is tested from here.
    root = str(Path(__file__).resolve().parent.parent)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": root}})  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def pictures(digits: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("serving.scoring.units.UNIT_ROWS", 20_000)
    generator = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", generator.integers(0, 256, (200_000, 1, 8, 8), np.uint8))
    return tmp_path / "rows.npy"


def test_it_gives_the_same_bytes_and_goes_on_where_the_other_was(
    cluster: None, digits: Predictor, pictures: Path, tmp_path: Path
) -> None:
    given, options = [str(pictures)], Options(workers=2)
    score(digits, given, tmp_path / "local", Options(workers=1))
    expected = bytes_of(tmp_path / "local")
    summary = score(digits, given, tmp_path / "ray", options, engine=ray_engine())
    assert summary["rows_scored"] == 200_000 and len(summary["parts"]) == 14
    assert bytes_of(tmp_path / "ray") == expected

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(digits, given, tmp_path / "both", Options(workers=1), progress=stop)
    assert not (tmp_path / "both" / "summary.json").exists()
    score(digits, given, tmp_path / "both", options, engine=ray_engine())
    assert bytes_of(tmp_path / "both") == expected


def test_an_actor_that_is_killed_costs_nothing_but_time(
    cluster: None, digits: Predictor, pictures: Path, tmp_path: Path
) -> None:
    killed = []

    def kill_one() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not killed:
            for process in psutil.process_iter(["cmdline"]):
                line = " ".join(process.info["cmdline"] or [])
                parts = list((tmp_path / "out").glob("part-*"))
                if line.startswith("ray::") and "UnitScorer" in line and parts:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=kill_one)
    thread.start()
    summary = score(
        digits, [str(pictures)], tmp_path / "out", Options(workers=2), engine=ray_engine()
    )
    thread.join()
    assert killed
    assert summary["rows_scored"] == 200_000
    assert parts_of(tmp_path / "out")["row"].to_pylist() == list(range(200_000))
    assert rejected_of(tmp_path / "out") == []


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(DataError, match=f"--address 127.0.0.1:{port}: no cluster is there"):
            ray_engine(f"127.0.0.1:{port}")


@pytest.mark.slow
def test_a_cluster_that_is_there_scores_and_lets_nobody_in_without_its_token(
    digits: Predictor, pictures: Path, tmp_path: Path
) -> None:
    score(digits, [str(pictures)], tmp_path / "local", Options(workers=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parent.parent)
    known = {**os.environ, "PYTHONPATH": root, "HOME": str(tmp_path), "RAY_ADDRESS": ""}
    known |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    start = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    start += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    binaries = Path(sys.executable).parent
    with subprocess.Popen([binaries / start[0], *start[1:]], env=known) as started:
        try:
            wait_for(port)
            line = [sys.executable, "-m", "parityline", "score", str(digits.bundle.path)]
            line += [str(pictures), "--out", str(tmp_path / "ray"), "--engine", "ray"]
            line += ["--address", f"127.0.0.1:{port}", "--workers", "2"]
            unknown = {k: v for k, v in known.items() if not k.startswith("RAY_AUTH")}
            refused = subprocess.run(line, env=unknown, capture_output=True, text=True, timeout=180)
            assert refused.returncode == 1 and "RAY_AUTH_MODE=token" in refused.stderr
            subprocess.run(line, env=known, check=True, timeout=180)
        finally:
            started.terminate()
    assert parts_of(tmp_path / "ray").equals(parts_of(tmp_path / "local"))


def wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, f"nobody listens on port {port}"
        time.sleep(0.2)


def test_what_goes_wrong_on_the_cluster_is_said(
    cluster: None, digits: Predictor, pictures: Path, tmp_path: Path
) -> None:
    def full() -> None:
        (tmp_path / "out" / ".records").rmdir()
        (tmp_path / "out" / ".records").touch()

    def engine(*arguments: object) -> None:
        full()
        ray_engine()(*arguments)

    with pytest.raises(DataError, match="cannot be written"):
        score(digits, [str(pictures)], tmp_path / "out", Options(workers=2), engine=engine)


def test_without_an_address_it_starts_a_ray_of_its_own_beside_any_other(
    digits: Predictor, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def init(**given: object) -> None:
        asked.update(given)
        raise ConnectionError("enough seen")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    # None would be whatever Ray runs on this machine, or $RAY_ADDRESS, with its own count of CPUs.
    with pytest.raises(DataError, match="enough seen"):
        score(digits, [str(pictures)], tmp_path / "own", Options(workers=1), engine=ray_engine())
    assert asked["address"] == "local" and asked["num_cpus"] == 1
