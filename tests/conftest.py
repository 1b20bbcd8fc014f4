"""Small real models, trained once a session, and real `bentoml serve` processes."""

from __future__ import annotations

import os

# Tiny models: a second thread costs more than it brings, most of all on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"
# Recording a run costs seconds; the tests of it ask for it.
os.environ["PARITYLINE_TRACK"] = "0"

import fcntl
import functools
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import settings

from artifacts.bundle import Bundle

# How long an example takes says how busy the machine is.
settings.register_profile("parityline", deadline=None)
settings.load_profile("parityline")

ROOT = Path(__file__).parent.parent
QUICK_DIGITS = ["train.epochs=6", "model.hidden=[48,24]", "export.max_batch_size=256"]
QUICK_CANCER = ["train.epochs=10", "export.max_batch_size=128"]


# Minutes each: a file that begins last is what all others are waited for.
_LONG = ("gate", "ranks", "readme", "resume", "own_data", "cli", "score_again", "score_ray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, each by one of pytest-xdist's workers."""
    place = {f"test_{name}": number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(_LONG)))


@pytest.fixture(scope="session", autouse=True)
def quick_releases() -> None:
    """torch's exporter parses the source of all of ONNX's operators for each export: a third of its
    time. They are the same for all exports of a process. How fast a model is, is no test's matter.
    """
    from torch.onnx._internal._lazy_import import onnxscript_apis

    from training import speed

    speed._ROUNDS = 1
    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a released `digits` and `breast-cancer`, small but trained on real data."""
    from rich.console import Console

    from training.recipe import load_recipe
    from training.run import run

    # One folder for all of pytest-xdist's workers; the first to come trains.
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "trained-store"
    with (root / "trained-store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, overrides in (("digits", QUICK_DIGITS), ("breast-cancer", QUICK_CANCER)):
            if not (folder / name / "promoted").exists():
                recipe = load_recipe(name, overrides)
                run(recipe, folder, promote=True, console=Console(quiet=True))
    return folder


@pytest.fixture
def use_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`store` as $PARITYLINE_STORE."""
    monkeypatch.setenv("PARITYLINE_STORE", str(store))
    return store


@pytest.fixture(scope="session")
def digits(store: Path):
    """The predictor of the small digits model."""
    from artifacts.bundle import read_bundle
    from artifacts.predictor import open_predictor
    from artifacts.references import resolve

    bundle = read_bundle(resolve(store, "digits"))
    return open_predictor(bundle, backend="onnx", device="cpu", threads=1)


@pytest.fixture(scope="session")
def cancer(store: Path):
    """The predictor of the small breast-cancer model."""
    from artifacts.bundle import read_bundle
    from artifacts.predictor import open_predictor
    from artifacts.references import resolve

    bundle = read_bundle(resolve(store, "breast-cancer"))
    return open_predictor(bundle, backend="onnx", device="cpu", threads=1)


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """The raw test part of digits, uint8 [359, 1, 8, 8]."""
    from training.data import load_dataset
    from training.recipe import DataConfig

    return load_dataset(DataConfig(source="digits")).test.raw


@pytest.fixture
def bundle(store: Path, tmp_path: Path) -> Bundle:
    """A copy of the digits bundle that a test may spoil, in a store of its own."""
    from artifacts.bundle import read_bundle
    from artifacts.references import promote, resolve

    source = read_bundle(resolve(store, "digits"))
    target = tmp_path / "store" / "digits" / source.manifest.version
    shutil.copytree(source.path, target)
    promote(tmp_path / "store", source.manifest.reference)
    return read_bundle(target)


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(log: Path, **environment: str) -> Server:
    """`bentoml serve` with these variables, not waited for, in a process group of its own."""
    port = free_port()
    # One for all, as the services of one user have it.
    home = log.parent / "bentoml"
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Classifier"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "true",
                "BENTOML_HOME": str(home),
                "PARITYLINE_DEVICE": "cpu",
                "PARITYLINE_WORKERS": "1",
                "PARITYLINE_GRACE_S": "0.1",
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
    return Server(f"http://127.0.0.1:{port}", process, log)


def wait_until_ready(server: Server, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"not ready in {seconds} s:\n{server.log.read_text()}")


def stop_server(server: Server) -> int:
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    return server.process.wait(timeout=60)


@pytest.fixture(scope="session")
def serve(
    store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    """A function from a bundle's name to its running server, started once."""
    servers: dict[str, Server] = {}
    logs = tmp_path_factory.mktemp("logs")

    def running(name: str) -> Server:
        if name not in servers:
            servers[name] = start_server(
                logs / f"{name}.log", PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE=name
            )
            wait_until_ready(servers[name])
        return servers[name]

    yield running
    for server in servers.values():
        stop_server(server)


def parityline(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "parityline", *arguments],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """The command line in this process: seconds of imports less than `parityline`."""
    # Or `score`, which does without, would keep pyarrow from it in this process too.
    import pandas  # noqa: F401

    import parityline as front

    def run(*arguments: str, **environment: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["parityline", *arguments])
        for name, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            front.main()
        printed = capsys.readouterr()
        code = stop.value.code
        return Ended(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """For offline jobs: a few rows are many units."""
    for name in ("units.UNIT_ROWS", "units.UNIT_PICTURES"):
        monkeypatch.setattr(f"serving.scoring.{name}", 40)
    monkeypatch.setattr("serving.scoring.units.UNIT_BYTES", 8_000)
    monkeypatch.setattr("serving.scoring.chunks._MOST_ROWS", 16)
