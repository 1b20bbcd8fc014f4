"""The built Bento: what is in it, what it answers, and that its environment is its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from artifacts.bundle import Bundle, write_bundle
from artifacts.predictor import Predictor, open_bundle
from artifacts.references import promote
from tests.answers import probabilities_in
from tests.conftest import ROOT, Server, free_port, parityline, stop_server, wait_until_ready
from tests.forgery import files_of

SECRET = "hunter2-do-not-pack"
PLANTED = (
    ".env", "id_rsa", "serving/.env", "serving/tls.pem", "serving/notes.txt", "artifacts/.netrc",
    "artifacts/store/.env", "artifacts/store/digits/.env", "artifacts/store/digits/key.pem",
    "artifacts/store/.tmp-abc/model.onnx", "artifacts/store/digits/.tmp-abc/model.onnx",
    "artifacts/store/digits/.checkpoints/last.pt", "artifacts/store/.tuning/digits/journal.log",
    "artifacts/store/.scoring/part.parquet", "serving/__pycache__/service.cpython-311.pyc",
    "serving/page/static/.env", "serving/page/.env",
)  # fmt: skip


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bentoml", *arguments],
        cwd=cwd,
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "true", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def checkout(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with two bundles in its store, and much that must not be packed."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("artifacts", "serving", "training"):
        shutil.copytree(
            ROOT / room, folder / room, ignore=shutil.ignore_patterns("store", "__pycache__")
        )
    shutil.copy(ROOT / "bentofile.yaml", folder)
    for name in ("digits", "breast-cancer"):
        shutil.copytree(store / name, folder / "artifacts" / "store" / name)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def bento(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain `bentoml build` makes of the checkout."""
    home = tmp_path_factory.mktemp("home")
    done = command(
        "build", "--output", "tag", cwd=checkout, BENTOML_HOME=str(home),
        PARITYLINE_BUNDLE="digits", PARITYLINE_STORE="",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = home.glob("bentos/classifier/*/")
    return built


def built_by_command(
    home: Path, store: Path, *arguments: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The Bento that `parityline build` makes, and what it says."""
    home.mkdir()
    done = parityline(
        "build", *arguments, cwd=home, BENTOML_HOME=str(home), BENTOML_DO_NOT_TRACK="true",
        PARITYLINE_STORE=str(store),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = home.glob("bentos/*/*/")
    return built, done


def test_a_bento_for_the_cpu_has_a_worker_for_each_core_beside_a_gpu_too(tmp_path: Path) -> None:
    for room in ("artifacts", "serving"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("store"))
    packed = {"bundle": "digits@0", "backend": "onnx", "device": "cpu"}
    (tmp_path / "packed.json").write_text(json.dumps(packed))
    program = (
        "import artifacts.devices; artifacts.devices.cuda_device_count = lambda: 3\n"
        "import serving.bento; print(serving.bento.Classifier.config['workers'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "cpu_count\n", done.stderr


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@contextmanager
def serving(
    bento: Path, tmp_path: Path, blocked: tuple[str, ...], python: str = sys.executable,
    **environment: str,
) -> Iterator[Server]:  # fmt: skip
    """`bentoml serve` of a built Bento where `blocked` packages cannot be imported.

    The working directory holds packages of the rooms' names, and $PARITYLINE_STORE another store.
    """
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    home.mkdir()
    for room in ("artifacts", "serving"):
        (elsewhere / room).mkdir(parents=True)
        (elsewhere / room / "__init__.py").write_text("raise SystemExit('not the code packed')")
    for package in blocked:
        (tmp_path / "blocked" / package).mkdir(parents=True)
        (tmp_path / "blocked" / package / "__init__.py").write_text("raise ImportError('blocked')")
    port = free_port()
    arguments = [python, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            [*arguments, "--port", str(port)],
            cwd=elsewhere,
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "true",
                "BENTOML_HOME": str(home),
                "PYTHONPATH": str(tmp_path / "blocked"),
                "PARITYLINE_STORE": str(tmp_path / "no-store"),
                "PARITYLINE_DEVICE": "cpu",
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    try:
        wait_until_ready(server)
        yield server
    finally:
        assert stop_server(server) == 0


def answers(server: Server, predictor: Predictor, pictures: np.ndarray) -> np.ndarray:
    with server.client() as client:
        assert client.get("/").status_code == client.get("/page/page.js").status_code == 200
        response = client.post("/predict", json={"instances": pictures[:, 0].tolist()})
    return probabilities_in(response, predictor)


def test_a_bento_holds_the_code_that_serves_one_bundle_and_nothing_else(
    bento: Path, checkout: Path
) -> None:
    shelf = checkout / "artifacts" / "store" / "digits"
    version = (shelf / "promoted").read_text().strip()
    code = {
        str(file.relative_to(checkout))
        for room in ("artifacts", "serving")
        for file in (checkout / room).glob("*.py")
    }
    page = checkout / "serving" / "page"
    code |= {
        str(file.relative_to(checkout))
        for file in (*page.glob("*.py"), *(page / "static").glob("[!.]*"))
    }
    held = {f"artifacts/store/digits/{version}/{name}" for name in digests(shelf / version)}
    packed = digests(bento / "src")
    assert set(packed) == {
        "bentofile.yaml", "packed.json", "artifacts/store/digits/promoted", *code, *held,
    }  # fmt: skip
    for name in code | held:
        assert packed[name] == hashlib.sha256((checkout / name).read_bytes()).hexdigest()
    assert {name.partition("/")[0] for name in digests(bento)} == {
        "README.md", "apis", "bento.yaml", "env", "src",
    }  # fmt: skip
    for file in bento.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert SECRET.encode() not in data, file
            assert str(checkout.parent).encode() not in data, f"{file}: a path of this machine"


def test_both_ways_to_build_pack_the_same(bento: Path, checkout: Path, tmp_path: Path) -> None:
    built, done = built_by_command(
        tmp_path / "home", checkout / "artifacts" / "store", "digits", "--output", "mine.bento"
    )
    plain, ours = digests(bento), digests(built)
    # Each records its own build: tag and time, description and labels.
    own = {"bento.yaml", "README.md", "src/bentofile.yaml"}
    assert {name for name in plain.keys() | ours.keys() if plain.get(name) != ours.get(name)} <= own
    tag = f"digits:{built.name}"
    assert f"built: {tag}, " in done.stdout
    assert f"next: bentoml serve {tag}, or bentoml containerize {tag}\n" in done.stdout
    with tarfile.open(tmp_path / "home" / "mine.bento") as archive:
        assert set(ours) <= {name.removeprefix("./") for name in archive.getnames()}


def test_a_served_bento_answers_bit_for_bit_the_same_from_anywhere(
    bento: Path, digits: Predictor, pictures: np.ndarray, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(bento, moved)
    before = digests(moved / "src" / "artifacts" / "store")
    blocked = ("training", "torch", "sklearn", "optuna", "mlflow", "pyarrow", "typer")
    with serving(moved, tmp_path, blocked, PARITYLINE_BUNDLE="breast-cancer") as server:
        found = answers(server, digits, pictures)
        with server.client() as client:
            assert client.get("/model").json()["version"] == digits.manifest.version
    np.testing.assert_array_equal(found, digits.predict(pictures).probabilities)
    assert digests(moved / "src" / "artifacts" / "store") == before
    assert "onnx on cpu" in server.log.read_text()


@pytest.mark.slow
def test_a_bento_for_torchscript_serves_torchscript_and_locks_torch(
    store: Path, pictures: np.ndarray, tmp_path: Path
) -> None:
    built, _ = built_by_command(
        tmp_path / "building", store, "digits", "--backend", "torchscript", "--name", "scripted"
    )
    assert built.parent.name == "scripted"
    assert "\ntorch==" in (built / "env" / "python" / "requirements.txt").read_text()
    (bundle,) = (store / "digits").glob("[0-9a-f]*")
    predictor = open_bundle(str(bundle), backend="torchscript", device="cpu")
    with serving(built, tmp_path, ("training", "sklearn")) as server:
        found = answers(server, predictor, pictures[:64])
    np.testing.assert_allclose(found, predictor.predict(pictures[:64]).probabilities, rtol=1e-5)
    assert "torchscript on cpu" in server.log.read_text()


# BentoML's own use of pathspec and pydantic, seen where it is imported in this process.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("environment", "lock"),
    [
        ({}, "requirements.lock"),
        ({"PARITYLINE_DEVICE": "cpu"}, "requirements-cpu.lock"),
        ({"PARITYLINE_BACKEND": "export"}, "requirements-torch.lock"),
    ],
)
def test_a_bento_locks_what_its_backend_and_device_need(
    environment: Mapping[str, str], lock: str
) -> None:
    from serving.packing import lock_path
    from serving.settings import read_settings

    text = lock_path(read_settings(environment)).read_text()
    assert text == (ROOT / "serving" / lock).read_text()
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    assert {"bentoml", "uvloop", "pydantic", "onnxruntime"} <= pinned
    assert ("torch" in pinned) == (lock == "requirements-torch.lock")
    assert ("onnxruntime-gpu" in pinned) == (lock != "requirements-cpu.lock")
    assert not pinned & {"scikit-learn", "optuna", "mlflow", "torchvision", "pyarrow", "typer"}


def test_the_image_installs_the_lock_as_it_is(bento: Path) -> None:
    text = (bento / "env" / "python" / "requirements.txt").read_text()
    assert text == (ROOT / "serving" / "requirements.lock").read_text()
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "-slim AS base-container" in dockerfile and "apt-get" not in dockerfile
    assert "pip install -r $BENTO_PATH/env/python/requirements.txt" in dockerfile


def test_a_build_without_a_choice_or_with_a_bad_bundle_is_refused_and_leaves_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(checkout / "artifacts" / "store", store)

    def refused(**environment: str) -> str:
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        (tmp_path / "home").mkdir()
        done = command(
            "build", cwd=checkout, BENTOML_HOME=str(tmp_path / "home"),
            **{"PARITYLINE_BUNDLE": "", "PARITYLINE_STORE": str(store), **environment},
        )  # fmt: skip
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert not [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
        return done.stderr

    assert "there are: breast-cancer, digits" in refused()
    (model,) = (store / "digits").glob("[0-9a-f]*/model.onnx")
    model.write_bytes(b"another")
    assert "model.onnx: expected" in refused(PARITYLINE_BUNDLE="digits")


def test_what_build_refuses_it_refuses_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    files = files_of(bundle)
    del files["model.ts"]
    other = write_bundle(tmp_path / "other", bundle.manifest, files)
    promote(tmp_path / "other", other.manifest.reference)
    (tmp_path / "home").mkdir()
    (tmp_path / "there.bento").write_bytes(b"")
    for arguments, expected in (
        (("digits", "--backend", "torchscript"), "backend 'torchscript' needs model.ts, this"),
        (("digits", "--name", "a b"), "not a valid BentoML tag"),
        (("digits", "--output", str(tmp_path / "there.bento")), "it is there already"),
    ):
        done = parityline(
            "build", *arguments, BENTOML_HOME=str(tmp_path / "home"),
            BENTOML_DO_NOT_TRACK="true", PARITYLINE_STORE=str(tmp_path / "other"),
        )  # fmt: skip
        assert done.returncode == 1 and expected in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list((tmp_path / "home").glob("bentos/*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_bento_is_served_from_a_clean_environment_of_its_own_lock(
    store: Path, digits: Predictor, pictures: np.ndarray, tmp_path: Path, device: str
) -> None:
    built, _ = built_by_command(tmp_path / "building", store, "digits", "--device", device)
    uv = [sys.executable, "-m", "uv"]
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    subprocess.run(
        [
            *uv, "pip", "sync", "-q", "--python", python, "--require-hashes", "--no-build",
            built / "env" / "python" / "requirements.txt",
        ],
        check=True,
    )  # fmt: skip
    listed = subprocess.run(
        [*uv, "pip", "list", "--python", python, "--format", "json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    packages = {entry["name"] for entry in json.loads(listed.stdout)}
    assert "bentoml" in packages and not packages & {"torch", "parityline", "pyarrow"}
    with serving(built, tmp_path, (), str(python)) as server:
        found = answers(server, digits, pictures)
    np.testing.assert_array_equal(found, digits.predict(pictures).probabilities)
