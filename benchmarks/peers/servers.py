"""Starting a server of its own kind and environment, waiting until it answers, ending it.

All listen on 127.0.0.1 with the same number of worker processes, none pinned to a core, none with
an access log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from artifacts.bundle import Bundle
from artifacts.manifest import ONNX

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Ready is what the first worker says; the others start for some seconds more.
_SETTLE_S, _LOOK_S, _AT_REST = 20.0, 1.0, 0.1
_READY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how long.

    data: the idx files; images: a folder of pictures for each class. store, environments: what is
    kept from run to run. service: the checkout whose service is ours. seconds: of each figure,
    overload_s: of each of overload's loads. requests: over which memory is watched.
    """

    data: Path
    images: Path
    store: Path
    environments: Path
    service: Path
    workers: int
    rounds: int
    seconds: float
    overload_s: float
    requests: int


@dataclass(frozen=True)
class Place:
    """What a server is started with. folder: its own, empty, to write in."""

    bundle: Bundle
    setting: Setting
    port: int
    folder: Path


@dataclass(frozen=True)
class Command:
    """A server's command line, the variables that it reads, and the path that says it is ready."""

    arguments: list[str]
    variables: dict[str, str]
    ready: str
    folder: Path


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    port: int
    process: subprocess.Popen[bytes]


Server = Callable[[Place], Command]


@contextlib.contextmanager
def running(server: Server, bundle: Bundle, setting: Setting) -> Iterator[Running]:
    """The server, ready to be asked; ended with all of its processes on leaving."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = Place(bundle, setting, free_port(), folder)
        command = server(place)
        log = stack.enter_context((folder / "log").open("w+b"))
        variables = {
            "OMP_NUM_THREADS": "1",
            "MODEL": str(bundle.path / ONNX),
            "WORKERS": str(setting.workers),
        }
        process = subprocess.Popen(
            command.arguments,
            cwd=command.folder,
            env={**os.environ, **variables, **command.variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{place.port}{command.ready}", process, folder / "log")
            yield Running(place.port, process)
        finally:
            _end(process)


def ours(place: Place) -> Command:
    """The service of this repository."""
    bundle = place.bundle
    return Command(
        _bentoml("serving.service:Classifier", place),
        {
            "PYTHONPATH": str(place.setting.service),
            "PARITYLINE_STORE": str(bundle.path.parent.parent),
            "PARITYLINE_BUNDLE": bundle.manifest.reference,
            "PARITYLINE_DEVICE": "cpu",
            "PARITYLINE_WORKERS": str(place.setting.workers),
            "BENTOML_HOME": str(place.folder),
            "BENTOML_DO_NOT_TRACK": "true",
        },
        "/readyz",
        place.setting.service,
    )


def bentoml_plain(place: Place) -> Command:
    """BentoML's own batching; in our environment, which has it."""
    variables = {"BENTOML_HOME": str(place.folder), "BENTOML_DO_NOT_TRACK": "true"}
    return Command(_bentoml("bentoml_plain:Plain", place), variables, "/readyz", HERE)


def fastapi_json(place: Place) -> Command:
    """FastAPI with a pydantic body."""
    return _uvicorn("fastapi_json:app", place)


def fastapi_raw(place: Place) -> Command:
    """FastAPI with raw bytes: the floor."""
    return _uvicorn("fastapi_raw:app", place)


def litserve_batched(place: Place) -> Command:
    """LitServe."""
    python = environment(place.setting.environments, "litserve") / "python"
    variables = {"PORT": str(place.port)}
    return Command([str(python), str(HERE / "litserve_batched.py")], variables, "/health", HERE)


def mlserver_v2(place: Place) -> Command:
    """MLServer: its HTTP process and as many inference workers as the others have workers."""
    return _mlserver(place, place.setting.workers)


def mlserver_one_process(place: Place) -> Command:
    """MLServer without inference workers, which a model as small as this one does not repay."""
    return _mlserver(place, 0)


def environment(environments: Path, name: str) -> Path:
    """The bin folder of a peer's environment, made from its pinned requirements where it is not."""
    folder, requirements = environments / name, HERE / f"requirements-{name}.txt"
    made_from = folder / "made-from.txt"
    if not made_from.exists() or made_from.read_text() != requirements.read_text():
        uv = [sys.executable, "-m", "uv"]
        python = str(folder / "bin" / "python")
        venv = ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        subprocess.run([*uv, *venv], check=True)
        sync = ["pip", "sync", "--quiet", "--python", python, str(requirements)]
        subprocess.run([*uv, *sync], check=True)
        made_from.write_text(requirements.read_text())
    return folder / "bin"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bentoml(service: str, place: Place) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(place.port)]
    return [sys.executable, "-m", "bentoml", "serve", service, *where]


def _uvicorn(app: str, place: Place) -> Command:
    binaries = environment(place.setting.environments, "fastapi")
    arguments = [str(binaries / "uvicorn"), app, "--host", "127.0.0.1", "--port", str(place.port)]
    arguments += ["--workers", str(place.setting.workers), "--no-access-log"]
    return Command(arguments, {}, "/openapi.json", HERE)


def _mlserver(place: Place, inference_workers: int) -> Command:
    binaries = environment(place.setting.environments, "mlserver")
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": place.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": inference_workers,
    }
    model = {
        "name": place.bundle.manifest.name,
        "implementation": "mlserver_v2.OnnxModel",
        "parameters": {"version": place.bundle.manifest.version},
    }
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    variables = {"PYTHONPATH": str(HERE)}
    arguments = [str(binaries / "mlserver"), "start", str(place.folder)]
    return Command(arguments, variables, "/v2/health/ready", place.folder)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                _settle(process)
                return
        time.sleep(0.1)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise SystemExit(f"{url}: expected an answer within {_READY_S:.0f} s, found none:\n{last}")


def _settle(process: subprocess.Popen[bytes]) -> None:
    """Until all of its processes have come to rest: the first that answers is not the last."""
    deadline = time.monotonic() + _SETTLE_S
    before = _cpu_seconds(process)
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = _cpu_seconds(process)
        quiet = quiet + 1 if now - before < _AT_REST * _LOOK_S else 0
        before = now


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    total = 0.0
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:2])
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server; what it leaves behind is in its own session."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
