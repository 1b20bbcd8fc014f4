from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import artifacts.bundle
from artifacts.bundle import Bundle, Golden, read_bundle, write_bundle
from artifacts.errors import BundleError, ParityError
from artifacts.manifest import BUNDLE_FILES, Manifest
from artifacts.predictor import open_bundle
from artifacts.references import (
    list_bundles,
    only_name,
    open_reference,
    promote,
    promoted_version,
    resolve,
)
from tests.conftest import ROOT, parityline


@pytest.fixture
def bundle(store: Path, tmp_path: Path) -> Bundle:
    """A copy of the digits bundle that a test may spoil, in a store of its own."""
    source = read_bundle(resolve(store, "digits"))
    target = tmp_path / "store" / "digits" / source.manifest.version
    shutil.copytree(source.path, target)
    promote(tmp_path / "store", source.manifest.reference)
    return read_bundle(target)


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in BUNDLE_FILES}


def forge(bundle: Bundle, store: Path, **changes: bytes) -> Bundle:
    """A bundle with other files and digests that fit them: what a careful forger makes."""
    files = {**files_of(bundle), **{name.replace("_", "."): data for name, data in changes.items()}}
    return write_bundle(store, bundle.manifest, files)


def test_a_version_is_what_its_content_is(bundle: Bundle, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "other", bundle.manifest, files_of(bundle))
    assert again.manifest.version == bundle.manifest.version
    later = bundle.manifest.model_copy(update={"created": "2030-01-01T00:00:00+00:00"})
    again = write_bundle(tmp_path / "later", later, files_of(bundle))
    assert again.manifest.version == bundle.manifest.version
    changed = bundle.manifest.model_copy(update={"seed": 99})
    other = write_bundle(tmp_path / "changed", changed, files_of(bundle))
    assert other.manifest.version != bundle.manifest.version
    assert forge(bundle, tmp_path / "third", report_html=b"x").path != again.path


def test_writing_a_bundle_that_is_there_changes_nothing(bundle: Bundle) -> None:
    before = {entry.name: entry.stat().st_mtime_ns for entry in bundle.path.iterdir()}
    store = bundle.path.parent.parent
    assert write_bundle(store, bundle.manifest, files_of(bundle)) == bundle
    assert {entry.name: entry.stat().st_mtime_ns for entry in bundle.path.iterdir()} == before
    assert not list(bundle.path.parent.glob(".tmp-*"))


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_tampered_file_is_refused_by_name(bundle: Bundle, name: str) -> None:
    data = bytearray(bundle.read(name))
    data[len(data) // 2] ^= 1
    (bundle.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: expected sha256 \w+\.\.\., found \w+"):
        read_bundle(bundle.path)
    with pytest.raises(BundleError, match=name):
        bundle.read(name)


def test_missing_extra_and_short_files_are_all_named(bundle: Bundle) -> None:
    (bundle.path / "model.ts").unlink()
    (bundle.path / "notes.txt").write_text("hello")
    (bundle.path / "golden.npz").write_bytes(b"x")
    with pytest.raises(BundleError) as error:
        read_bundle(bundle.path)
    for part in ("notes.txt: unexpected file", "model.ts: missing", "golden.npz: expected"):
        assert part in str(error.value)


def test_a_manifest_that_is_cut_short_changed_or_unknown_is_refused(bundle: Bundle) -> None:
    file = bundle.path / "manifest.json"
    text = file.read_text()
    content = json.loads(text)
    cases = {
        text[: len(text) // 2]: "not JSON, or cut short",
        "": "not JSON, or cut short",
        "[" * 100_000: "not JSON, or cut short",
        "[]": "expected schema_version 1, found None",
        json.dumps({**content, "schema_version": 2}): "expected schema_version 1, found 2",
        json.dumps({**content, "seed": 5}): "the manifest was changed",
        json.dumps({**content, "surprise": 5}): "surprise: Extra inputs",
        json.dumps({**content, "labels": ["a"]}): "labels",
        json.dumps({**content, "files": {}}): "files: expected state_dict.pt",
        json.dumps({**content, "schema_version": True}): "found True",
        json.dumps({**content, "files": {"../x": {"size": 1, "sha256": "0" * 64}}}): "files",
    }
    for spoiled, message in cases.items():
        file.write_text(spoiled)
        with pytest.raises(BundleError, match=message):
            read_bundle(bundle.path)
    file.unlink()
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(bundle.path)
    with pytest.raises(BundleError, match="no bundle there"):
        read_bundle(bundle.path / "nowhere")


def test_a_golden_file_that_disagrees_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    golden = bundle.golden()
    logits = golden.logits.copy()
    logits[3, 1] += 0.5
    other = Golden(golden.raw, logits, golden.probabilities, golden.labels)
    forged = forge(bundle, tmp_path / "forged", golden_npz=other.encode())
    with pytest.raises(ParityError, match=r"digits@\w+ on onnx: golden\.npz disagrees.*row 3"):
        open_bundle(str(forged.path))


def test_a_golden_file_of_pickles_or_other_shapes_is_refused(
    bundle: Bundle, tmp_path: Path
) -> None:
    golden = bundle.golden()
    infinite = Golden(golden.raw, golden.logits * np.inf, golden.probabilities, golden.labels)
    floats = Golden(
        golden.raw.astype(np.float32), golden.logits, golden.probabilities, golden.labels
    )
    pickled = Golden(
        np.array([{}], dtype=object), golden.logits, golden.probabilities, golden.labels
    )
    short = Golden(golden.raw[:2], golden.logits, golden.probabilities, golden.labels)
    cases = {
        "not a golden file": pickled,
        "logits: expected float32 of shape": short,
        "raw: expected uint8": floats,
        "expected finite logits": infinite,
    }
    for message, spoiled in cases.items():
        forged = forge(bundle, tmp_path / message, golden_npz=spoiled.encode())
        with pytest.raises(BundleError, match=message):
            open_bundle(str(forged.path))
    payload = golden.encode()
    for damaged in (b"", b"junk", payload[:-500], payload[:900] + b"x" * 9 + payload[909:]):
        forged = forge(bundle, tmp_path / "damaged", golden_npz=damaged)
        with pytest.raises(BundleError, match=r"golden\.npz"):
            open_bundle(str(forged.path))


@pytest.mark.parametrize("backend", ["onnx", "torchscript", "export", "eager"])
def test_every_backend_refuses_another_models_answers(
    bundle: Bundle, tmp_path: Path, backend: str
) -> None:
    golden = bundle.golden()
    other = Golden(golden.raw, golden.logits[::-1], golden.probabilities[::-1], golden.labels)
    forged = forge(bundle, tmp_path / "forged", golden_npz=other.encode())
    with pytest.raises(ParityError, match=rf"on {backend}: golden\.npz disagrees"):
        open_bundle(str(forged.path), backend=backend)
    open_bundle(str(bundle.path), backend=backend)


@pytest.mark.parametrize(
    ("backend", "file"),
    [("onnx", "model_onnx"), ("torchscript", "model_ts"), ("export", "model_pt2")],
)
def test_a_file_that_its_backend_cannot_load_is_named(
    bundle: Bundle, tmp_path: Path, backend: str, file: str
) -> None:
    forged = forge(bundle, tmp_path / "forged", **{file: b"not a model"})
    with pytest.raises(BundleError, match=rf"{file.replace('_', '.')}: cannot load it"):
        open_bundle(str(forged.path), backend=backend)


def test_pickled_code_in_a_bundle_is_never_run(bundle: Bundle, tmp_path: Path) -> None:
    import pickle

    import torch

    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(trap),))

    spoiled = tmp_path / "weights"
    torch.save({"weight": Trap()}, spoiled)
    forged = write_bundle(
        tmp_path / "forged",
        bundle.manifest,
        {**files_of(bundle), "state_dict.pt": spoiled.read_bytes()},
    )
    with pytest.raises(BundleError, match=r"state_dict\.pt: not this network's weights"):
        open_bundle(str(forged.path), backend="eager")
    golden = bundle.golden()
    objects = np.array([Trap()], dtype=object)
    pickled = Golden(objects, golden.logits, golden.probabilities, golden.labels)
    forged = forge(bundle, tmp_path / "forged", golden_npz=pickled.encode())
    with pytest.raises(BundleError, match=r"golden\.npz: not a golden file"):
        open_bundle(str(forged.path))
    # The example inputs are the one pickle that a torch.export archive may hold.
    armed = io.BytesIO()
    torch.save((Trap(),), armed)
    example = rewritten(
        bundle.read("model.pt2"),
        lambda name, data: armed.getvalue() if name.endswith("sample_inputs/model.pt") else data,
    )
    forged = forge(bundle, tmp_path / "forged", model_pt2=example)
    with pytest.raises(BundleError, match=r"model\.pt2: cannot load it"):
        open_bundle(str(forged.path), backend="export")
    assert not trap.exists()
    for name, backend in (("model_pt2", "export"), ("model_ts", "torchscript")):
        for payload in (pickle.dumps(Trap()), with_pickles(files_of(bundle), name, Trap())):
            forged = forge(bundle, tmp_path / "forged", **{name: payload})
            with pytest.raises(BundleError):
                open_bundle(str(forged.path), backend=backend)
    assert not trap.exists()


def rewritten(payload: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with each entry's content changed."""
    output = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(payload)) as source,
        zipfile.ZipFile(output, "w") as target,
    ):
        for entry in source.infolist():
            name = entry.filename
            target.writestr(zipfile.ZipInfo(name), change(name, source.read(entry)))
    return output.getvalue()


def test_code_in_a_torchscript_file_is_never_run(bundle: Bundle, tmp_path: Path) -> None:
    """TorchScript can write files, in __setstate__ even while it is loaded."""
    import torch

    trap = tmp_path / "sprung"

    class Trap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.zeros(1)

        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, bool]:
            return self.weight, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            torch.save(state[0], "TRAP")
            self.weight = state[0]
            self.training = state[1]

        def forward(self, raw: torch.Tensor) -> torch.Tensor:
            return raw

    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Trap()), saved)
    armed = rewritten(saved.getvalue(), lambda _, data: data.replace(b"TRAP", str(trap).encode()))
    writes = rewritten(
        bundle.read("model.ts"),
        lambda name, data: (
            data.replace(b"torch.softmax(", b"torch.save(") if ".py" in name else data
        ),
    )
    method = rewritten(
        bundle.read("model.ts"),
        lambda name, data: (
            data.replace(b"torch.div(", b"raw.save(") if name.endswith("networks.py") else data
        ),
    )
    for payload, reason in ((armed, "__"), (writes, "torch.save"), (method, "raw.save")):
        forged = forge(bundle, tmp_path / "forged", model_ts=payload)
        with pytest.raises(BundleError, match=rf"model\.ts: cannot load it: it holds .*{reason}"):
            open_bundle(str(forged.path), backend="torchscript")
    assert not trap.exists()


def test_code_in_an_export_file_is_never_run(bundle: Bundle, tmp_path: Path) -> None:
    """torch.export.load evaluates symbolic expressions as Python."""
    trap = tmp_path / "sprung"
    code = f"Symbol('s1') + 0*len(str(__import__('os').mkdir({str(trap)!r})))"
    payload = bundle.read("model.pt2")

    def in_model(change: Callable[[dict], object]) -> bytes:
        def changed(name: str, data: bytes) -> bytes:
            if not name.endswith("models/model.json"):
                return data
            content = json.loads(data)
            change(content)
            return json.dumps(content).encode()

        return rewritten(payload, changed)

    def expression(content: dict) -> None:
        text = json.dumps(content)
        start = text.index('"expr_str": "') + len('"expr_str": ')
        end = text.index('"', start + 1) + 1
        content.update(json.loads(text[:start] + json.dumps(code) + text[end:]))

    def operator(content: dict) -> None:
        nodes = content["graph_module"]["graph"]["nodes"]
        nodes[0]["target"] = "torch.ops.aten.from_file.default"

    cases = {
        "the expression": in_model(expression),
        "guard code": in_model(lambda content: content.update(guards_code=[code])),
        "the operator torch.ops.aten.from_file": in_model(operator),
    }
    for reason, spoiled in cases.items():
        assert spoiled != payload
        forged = forge(bundle, tmp_path / "forged", model_pt2=spoiled)
        with pytest.raises(BundleError, match=rf"model\.pt2: cannot load it: it holds {reason}"):
            open_bundle(str(forged.path), backend="export")
    assert not trap.exists()


def with_pickles(files: dict[str, bytes], name: str, trap: object) -> bytes:
    """The archive with each pickle, or file of weights, in it replaced by the trap's."""
    import pickle

    import torch

    saved = io.BytesIO()
    torch.save(trap, saved)

    def trapped(name: str, data: bytes) -> bytes:
        if name.endswith(".pkl"):
            return pickle.dumps(trap)
        return saved.getvalue() if name.endswith((".pt", "weight_0", "constant_0")) else data

    return rewritten(files[name.replace("_", ".")], trapped)


def test_a_manifest_cannot_ask_for_more_memory_than_the_weights_have(
    bundle: Bundle, tmp_path: Path
) -> None:
    huge = bundle.manifest.network.model_copy(update={"hidden": (65536, 65536, 65536)})
    draft = bundle.manifest.model_copy(update={"network": huge})
    forged = write_bundle(tmp_path / "forged", draft, files_of(bundle))
    with pytest.raises(BundleError, match=r"state_dict\.pt: not this network's weights"):
        open_bundle(str(forged.path), backend="eager")


def test_fields_that_a_later_release_adds_do_not_close_earlier_bundles(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Manifest):
        decision_threshold: float | None = None

    monkeypatch.setattr("artifacts.bundle.Manifest", Later)
    assert read_bundle(bundle.path).manifest.version == bundle.manifest.version


def test_a_directory_holds_the_bundle_that_its_name_says(bundle: Bundle) -> None:
    store = bundle.path.parent.parent
    other = store / "digits" / "aaaaaaaaaaaa"
    shutil.copytree(bundle.path, other)
    with pytest.raises(
        BundleError, match=rf"expected this bundle there, found {bundle.manifest.reference}"
    ):
        open_reference(store, "digits@aaaaaaaaaaaa")
    with pytest.raises(BundleError, match="expected this bundle there"):
        promote(store, "digits@aaaaaaaaaaaa")
    assert open_reference(store, str(other)).manifest == bundle.manifest


def test_odd_entries_in_a_store_are_an_error_or_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    store = bundle.path.parent.parent
    (store / "notes.txt").write_text("mine")
    (store / "empty").mkdir()
    (bundle.path / ".DS_Store").write_bytes(b"looked at")
    assert list(list_bundles(store)) == ["digits"]
    read_bundle(bundle.path)
    (store / "digits" / "promoted").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="promoted: expected a version"):
        resolve(store, "digits")
    (bundle.path / "model.ts").unlink()
    (bundle.path / "model.ts").mkdir()
    with pytest.raises(BundleError, match=r"model\.ts: expected a file, found something else"):
        read_bundle(bundle.path)
    (tmp_path / "file").write_text("no store")
    with pytest.raises(BundleError, match="expected the store, a directory"):
        list_bundles(tmp_path / "file")


def test_an_export_holds_no_real_row(store: Path) -> None:
    """torch.export keeps its example inputs in the file: they must be made ones."""
    bundle = read_bundle(resolve(store, "breast-cancer"))
    golden = bundle.golden()
    for file in ("model.pt2", "model.ts", "model.onnx", "state_dict.pt"):
        content = bundle.read(file)
        assert not any(row.tobytes() in content for row in golden.raw), file
        from sklearn.datasets import load_breast_cancer

        assert not any(row.tobytes() in content for row in load_breast_cancer().data), file


def test_references_are_paths_versions_and_promoted_names(bundle: Bundle) -> None:
    store, version = bundle.path.parent.parent, bundle.manifest.version
    assert resolve(store, "digits") == bundle.path
    assert resolve(store, f"digits@{version}") == bundle.path
    assert resolve(store, str(bundle.path)) == bundle.path
    assert only_name(store) == "digits"
    (store / "digits" / "promoted").unlink()
    with pytest.raises(BundleError, match="no version of 'digits' is promoted"):
        resolve(store, "digits")
    with pytest.raises(BundleError, match=r"no version '000000000000'; there are: "):
        resolve(store, "digits@000000000000")
    with pytest.raises(BundleError, match="no bundle named 'other'.*digits"):
        resolve(store, "other")
    with pytest.raises(BundleError, match="expected NAME@VERSION"):
        promote(store, "digits")


def test_promoting_verifies_first_and_a_name_then_means_that_version(
    bundle: Bundle, tmp_path: Path
) -> None:
    store = bundle.path.parent.parent
    other = forge(bundle, store, report_html=b"another report")
    promote(store, other.manifest.reference)
    assert resolve(store, "digits") == other.path
    (bundle.path / "model.ts").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.ts"):
        promote(store, bundle.manifest.reference)
    assert promoted_version(store, "digits") == other.manifest.version
    with pytest.raises(BundleError, match="expected one bundle name"):
        only_name(tmp_path / "empty")


def test_a_full_disk_leaves_nothing_and_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="could not be written: .*No space left"):
        write_bundle(tmp_path / "full", bundle.manifest, files_of(bundle))
    assert list_bundles(tmp_path / "full") == {}
    assert list((tmp_path / "full" / "digits").iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from artifacts import bundle
source = bundle.read_bundle(Path(sys.argv[1]))
files = {name: source.read(name) for name in source.manifest.files}
calls, fsync = 0, os.fsync
def killed(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = killed
bundle.write_bundle(Path(sys.argv[2]), source.manifest, files)
"""


@pytest.mark.parametrize("call", [2, 5, 9, 10])
def test_a_writer_killed_at_any_point_leaves_no_bundle(
    bundle: Bundle, tmp_path: Path, call: int
) -> None:
    store = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_WRITER, str(bundle.path), str(store), str(call)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert list_bundles(store) == {}
    left = list((store / "digits").glob(".tmp-*"))
    assert len(left) == 1
    # The next writer sweeps what the killed one left.
    write_bundle(store, bundle.manifest, files_of(bundle))
    assert not left[0].exists()
    assert list(list_bundles(store)) == ["digits"]


def test_the_manifest_is_written_last(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = artifacts.bundle._write_synced

    def recorded(path: Path, data: bytes) -> None:
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr("artifacts.bundle._write_synced", recorded)
    write_bundle(tmp_path / "store", bundle.manifest, files_of(bundle))
    assert written[-1] == "manifest.json" and sorted(written[:-1]) == sorted(BUNDLE_FILES)


def test_two_writers_at_once_release_one_bundle(bundle: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "shared"
    command = [sys.executable, "-c", KILLED_WRITER, str(bundle.path), str(store), "0"]
    writers = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert list_bundles(store) == {"digits": [bundle.manifest.version]}
    assert not list((store / "digits").glob(".tmp-*"))


def test_training_killed_during_export_leaves_nothing_that_list_shows(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "parityline", "train", "digits"]
    command += ["--set", "train.epochs=1", "--set", "model.hidden=[8]"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PARITYLINE_STORE": str(store)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # The line after which export begins.
        assert any(line.startswith("test: accuracy") for line in process.stdout)
        time.sleep(0.5)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list_bundles(store) == {}
    result = parityline("list", PARITYLINE_STORE=str(store))
    assert result.returncode == 0 and "no bundles" in result.stdout


def test_a_manifest_says_nothing_of_machine_paths(store: Path) -> None:
    for name in ("digits", "breast-cancer"):
        bundle = read_bundle(resolve(store, name))
        for file in (*BUNDLE_FILES, "manifest.json"):
            content = (bundle.path / file).read_bytes()
            assert str(ROOT).encode() not in content, file
            assert b"site-packages" not in content, file


def test_the_public_part_of_a_manifest_holds_no_recipe_and_no_digest(store: Path) -> None:
    manifest: Manifest = read_bundle(resolve(store, "digits")).manifest
    assert not {"recipe", "files", "packages", "commit", "data"} & set(manifest.public())
    assert manifest.public()["labels"] == list(manifest.labels)
