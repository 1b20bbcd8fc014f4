"""Real `bentoml serve` processes: how they start, refuse to start, and end."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifacts.bundle import Golden, read_bundle, write_bundle
from artifacts.manifest import BUNDLE_FILES
from artifacts.predictor import Predictor
from artifacts.references import resolve
from serving.supervisor import supervise
from tests.answers import Serve, probabilities_in
from tests.conftest import free_port, start_server, stop_server, wait_until_ready

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """What the service says where it refuses to start, as before its workers are started."""

    def refuse(**environment: str) -> str:
        for name, value in {"PARITYLINE_DEVICE": "cpu", **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            supervise({"port": free_port()})
        assert stop.value.code == 1
        said = capfd.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    return refuse


def test_a_service_that_is_refused_ends_with_one_line_and_status_1(
    store: Path, tmp_path: Path
) -> None:
    server = start_server(
        tmp_path / "log", PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="nothing"
    )
    try:
        assert server.process.wait(timeout=90) == 1
    finally:
        server.process.kill()
    said = server.log.read_text()
    assert "error: no bundle named 'nothing'" in said and "Traceback" not in said


def test_a_spoiled_bundle_is_not_served(store: Path, tmp_path: Path, refused: Refused) -> None:
    """Promises 3 and 7: tampered, missing, cut short, unknown, disagreeing."""
    source = read_bundle(resolve(store, "digits"))
    golden = source.golden()
    wrong = Golden(golden.raw, golden.logits[::-1], golden.probabilities[::-1], golden.labels)
    files = {name: source.read(name) for name in BUNDLE_FILES}
    forged = write_bundle(
        tmp_path / "forged", source.manifest, {**files, "golden.npz": wrong.encode()}
    )
    cases = {"golden.npz disagrees on cpu: row 0: expected": forged.path}
    for name, spoil in {
        "model.onnx: expected sha256": lambda p: (p / "model.onnx").write_bytes(
            files["model.onnx"][:-1] + b"x"
        ),
        "model.pt2: missing": lambda p: (p / "model.pt2").unlink(),
        "manifest.json: not JSON, or cut short": lambda p: (p / "manifest.json").write_text("{"),
        "expected schema_version 1, found 9": lambda p: (p / "manifest.json").write_text(
            '{"schema_version": 9}'
        ),
    }.items():
        target = tmp_path / f"case{len(cases)}"
        shutil.copytree(source.path, target)
        spoil(target)
        cases[name] = target
    for message, path in cases.items():
        said = refused(PARITYLINE_BUNDLE=str(path))
        assert message in said, said


def test_without_a_choice_the_names_are_listed(store: Path, refused: Refused) -> None:
    said = refused(PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="")
    assert "there are: breast-cancer, digits" in said


def test_a_device_or_setting_that_is_not_there_is_an_error(
    store: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    environment = {"PARITYLINE_STORE": str(store), "PARITYLINE_BUNDLE": "digits"}
    said = refused(PARITYLINE_BACKEND="tensorrt", **environment)
    assert "PARITYLINE_BACKEND: expected one of onnx, torchscript, export, eager" in said
    monkeypatch.delenv("PARITYLINE_BACKEND")
    said = refused(PARITYLINE_MAX_BODY_BYTES="much", **environment)
    assert "PARITYLINE_MAX_BODY_BYTES: expected a whole number" in said
    monkeypatch.delenv("PARITYLINE_MAX_BODY_BYTES")
    said = refused(PARITYLINE_DEVICE="cuda", CUDA_VISIBLE_DEVICES="", **environment)
    assert "device cuda was asked for" in said


@pytest.mark.parametrize("backend", ["torchscript", pytest.param("eager", marks=pytest.mark.slow)])
def test_other_backends_answer_within_the_tolerance(
    store: Path, tmp_path: Path, digits: Predictor, backend: str
) -> None:
    server = start_server(
        tmp_path / "log",
        PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="digits", PARITYLINE_BACKEND=backend,
    )  # fmt: skip
    try:
        wait_until_ready(server)
        with server.client() as client:
            assert client.get("/model").json()["backend"] == backend
            body = {"instances": digits.golden.raw[:40, 0].tolist()}
            answer = probabilities_in(client.post("/predict", json=body), digits)
            np.testing.assert_allclose(answer, digits.golden.probabilities[:40], atol=1e-4)
    finally:
        assert stop_server(server) == 0


def test_the_curl_line_at_start_works(serve: Serve, digits: Predictor) -> None:
    lines = serve("digits").log.read_text().splitlines()
    command = next(line for line in lines if line.startswith("curl "))
    command = command.replace("localhost", "127.0.0.1")
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)["predictions"][0]
    assert answer["index"] == digits.golden.probabilities[0].argmax()
