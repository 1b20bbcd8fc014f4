"""A running service that is moved to another version, or stays with the one it has."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import numpy_helper

from artifacts.bundle import Bundle, Golden, read_bundle
from artifacts.predictor import open_predictor
from artifacts.references import promote, resolve
from tests.conftest import Server, start_server, stop_server, wait_until_ready
from tests.firing import check_bits, firing, wait_until, workers_of
from tests.forgery import forge

# In the process whose id is in $REFUSED the files of the version that is named there cannot be
# opened, for one reason or another: one worker alone has, say, no memory left.
REFUSE = """
import os, sys
def hook(event, details):
    if event == "open" and isinstance(details[0], str) and "/digits/" in details[0]:
        if os.path.lexists(os.environ["REFUSED"]):
            pid, version, kind = os.readlink(os.environ["REFUSED"]).split("@")
            if os.getpid() == int(pid) and f"/{version}/" in details[0]:
                raise {"OSError": OSError, "MemoryError": MemoryError}[kind]("refused")
sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Moved:
    """A service of two workers, and two versions of its model that answer unlike.

    expected: by reference the answers to `pictures`. refused: see REFUSE.
    """

    server: Server
    store: Path
    first: Bundle
    second: Bundle
    expected: dict[str, np.ndarray]
    refused: Path

    def promote(self, bundle: Bundle) -> None:
        """By the file alone, as a bundle that is spoiled is not promoted any other way."""
        (self.store / "digits" / "promoted").write_text(bundle.manifest.version + "\n")

    def move(self, bundle: Bundle) -> None:
        """Promote and wait until nothing else is answered."""
        promote(self.store, bundle.manifest.reference)
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.serving() == {bundle.manifest.reference})

    def serving(self) -> set[str]:
        """What new connections are answered by, a number of them."""
        found = set()
        for _ in range(8):
            with self.server.client() as client:
                model = client.get("/model").json()
                found.add(f"{model['name']}@{model['version']}")
        return found

    def said(self) -> int:
        """How often the service has said that it stays as it is."""
        return self.server.log.read_text().count("still serving")


def another(bundle: Bundle, store: Path, factor: float, *, honest: bool = True) -> Bundle:
    """The bundle with other weights; where it is not honest, with the old golden answers."""
    model = onnx.load_from_string(bundle.read("model.onnx"))
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    changed = numpy_helper.to_array(weights) * np.float32(factor)
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    changes = {"model_onnx": model.SerializeToString()}
    if honest:
        session = onnxruntime.InferenceSession(changes["model_onnx"])
        golden = bundle.golden()
        feed = {session.get_inputs()[0].name: golden.raw}
        logits, probabilities = session.run(["logits", "probabilities"], feed)
        changes["golden_npz"] = Golden(golden.raw, logits, probabilities, golden.labels).encode()
    return forge(bundle, store, **changes)


@pytest.fixture(scope="module")
def moved(
    store: Path, pictures: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    source = read_bundle(resolve(store, "digits"))
    own = folder / "store"
    shutil.copytree(source.path, own / "digits" / source.manifest.version)
    first = read_bundle(own / "digits" / source.manifest.version)
    second = another(first, own, 0.9)
    expected = {
        bundle.manifest.reference: open_predictor(
            bundle, backend="onnx", device="cpu", threads=1
        ).run(pictures)[1]
        for bundle in (first, second)
    }
    assert not (np.equal(*expected.values()).all(axis=1)).any()
    promote(own, first.manifest.reference)
    (folder / "sitecustomize.py").write_text(REFUSE)
    server = start_server(
        folder / "log",
        PARITYLINE_STORE=str(own),
        PARITYLINE_BUNDLE="digits",
        PARITYLINE_WORKERS="2",
        PYTHONPATH=os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        REFUSED=str(folder / "refused"),
    )
    try:
        wait_until_ready(server)
        wait_until(lambda: len(workers_of(server)) == 2)
        yield Moved(server, own, first, second, expected, folder / "refused")
    finally:
        assert stop_server(server) == 0


def test_a_promoted_version_is_taken_up_under_load_without_a_failed_request(
    moved: Moved, pictures: np.ndarray
) -> None:
    with firing(moved.server, "digits", pictures) as fire:
        for bundle in (moved.second, moved.first, moved.second):
            before = len(fire.shots)
            moved.move(bundle)
            fire.wait_for(50)
            assert len(fire.shots) > before
    assert not fire.failed()
    assert {shot.model for shot in fire.shots} == set(moved.expected)
    check_bits(fire.shots, moved.expected)


def test_a_replaced_worker_serves_the_version_in_force(moved: Moved, pictures: np.ndarray) -> None:
    """Not the one that is promoted meanwhile: nobody has asked the service to move yet."""
    moved.move(moved.second)
    moved.promote(moved.first)
    pid = workers_of(moved.server)[0]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(moved.server)) - {pid}) == 2)
    assert moved.serving() == {moved.second.manifest.reference}
    moved.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: moved.serving() == {moved.first.manifest.reference})


def test_orders_that_were_cleaned_up_are_given_again(moved: Moved) -> None:
    """Files that lie unchanged among temporary ones for days are removed on many machines."""
    worker = psutil.Process(workers_of(moved.server)[0])
    orders = Path(worker.environ()["PARITYLINE_RUN_DIRECTORY"]) / "orders.json"
    before = orders.read_bytes()
    orders.unlink()
    wait_until(orders.exists)
    assert orders.read_bytes() == before
    serving = moved.serving()
    for version in (moved.first, moved.second):
        moved.move(version)
    assert moved.serving() == {moved.second.manifest.reference}, serving
    assert "trouble" not in moved.server.log.read_text()


def test_a_version_that_fails_its_check_is_not_taken_up(moved: Moved, pictures: np.ndarray) -> None:
    moved.move(moved.first)
    tampered = another(moved.first, moved.store, 0.8)
    file = tampered.path / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    lying = another(moved.first, moved.store, 0.7, honest=False)
    with firing(moved.server, "digits", pictures, callers=2) as fire:
        for spoiled in (tampered, lying):
            said = moved.said()
            moved.promote(spoiled)
            moved.server.process.send_signal(signal.SIGHUP)
            wait_until(lambda said=said: moved.said() > said)
            assert moved.serving() == {moved.first.manifest.reference}
        said = moved.said()
        (moved.store / "digits" / "promoted").unlink()
        moved.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: moved.said() > said)
        fire.wait_for(20)
    assert not fire.failed()
    assert {shot.model for shot in fire.shots} == {moved.first.manifest.reference}
    log = moved.server.log.read_text()
    assert "model.onnx: expected sha256" in log and "golden.npz disagrees on cpu" in log


@pytest.mark.parametrize(("which", "reason"), [(0, "OSError"), (1, "MemoryError")])
def test_where_one_worker_cannot_open_it_all_stay_as_they_are(
    moved: Moved, pictures: np.ndarray, which: int, reason: str
) -> None:
    moved.move(moved.first)
    pids = workers_of(moved.server)
    moved.refused.symlink_to(f"{pids[which]}@{moved.second.manifest.version}@{reason}")
    try:
        with firing(moved.server, "digits", pictures, callers=2) as fire:
            said = moved.said()
            moved.promote(moved.second)
            moved.server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: moved.said() > said)
            fire.wait_for(20)
    finally:
        moved.refused.unlink()
    assert not fire.failed() and workers_of(moved.server) == pids
    assert {shot.model for shot in fire.shots} == {moved.first.manifest.reference}
    # It can when it is asked again.
    moved.move(moved.second)
    assert workers_of(moved.server) == pids


@pytest.mark.slow
def test_the_promoted_version_is_looked_up_by_the_clock(
    moved: Moved, tmp_path: Path, pictures: np.ndarray
) -> None:
    promote(moved.store, moved.first.manifest.reference)
    server = start_server(
        tmp_path / "log",
        PARITYLINE_STORE=str(moved.store),
        PARITYLINE_BUNDLE="digits",
        PARITYLINE_WATCH_S="0.5",
    )
    try:
        wait_until_ready(server)
        with firing(server, "digits", pictures, callers=2) as fire:
            fire.wait_for(20)
            promote(moved.store, moved.second.manifest.reference)
            wait_until(lambda: fire.shots[-1].model == moved.second.manifest.reference)
            # A version that cannot be served is tried once, not at every look.
            promoted = moved.store / "digits" / "promoted"
            promoted.write_text("0" * 12 + "\n")
            time.sleep(2)
            fire.wait_for(20)
        assert not fire.failed()
        assert {shot.model for shot in fire.shots} == set(moved.expected)
        check_bits(fire.shots, moved.expected)
        assert server.log.read_text().count("still serving") == 1
    finally:
        assert stop_server(server) == 0
