"""The bundle on disk, and the references that lead to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from artifacts.bundle import Bundle, read_bundle, write_bundle
from artifacts.errors import BundleError
from artifacts.manifest import BUNDLE_FILES, Manifest, content_sha256
from artifacts.references import (
    list_bundles,
    only_name,
    open_reference,
    promote,
    promoted_version,
    resolve,
)
from tests.conftest import ROOT
from tests.forgery import files_of, forge
from training.report.page import render_report, report_of


def test_a_version_is_what_its_content_is(bundle: Bundle, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "other", bundle.manifest, files_of(bundle))
    assert again.manifest.version == bundle.manifest.version
    later = bundle.manifest.model_copy(update={"created": "2030-01-01T00:00:00+00:00"})
    again = write_bundle(tmp_path / "later", later, files_of(bundle))
    assert again.manifest.version == bundle.manifest.version
    changed = bundle.manifest.model_copy(update={"seed": 99})
    other = write_bundle(tmp_path / "changed", changed, files_of(bundle))
    assert other.manifest.version != bundle.manifest.version
    assert forge(bundle, tmp_path / "third", parity_json=b"x").path != again.path


def test_speeds_and_their_report_leave_the_version_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    manifest, files = bundle.manifest, files_of(bundle)
    assert manifest.speed is not None
    slower = {
        name: entry.model_copy(update={"alone": entry.alone / 2})
        for name, entry in manifest.speed.formats.items()
    }
    other = manifest.model_copy(
        update={"speed": manifest.speed.model_copy(update={"formats": slower})}
    )
    del files["report.html"]
    written = write_bundle(
        tmp_path / "slower", other, files,
        lambda made: render_report(made, bundle.parity(), bundle.golden(), bundle.evidence()),
    )  # fmt: skip
    assert written.manifest.version == manifest.version
    assert written.read("report.html") != bundle.read("report.html")
    assert report_of(written) == written.read("report.html")
    # What is there already is kept, with its own speeds and its own report.
    again = write_bundle(tmp_path / "slower", manifest, files, lambda _: b"another")
    assert again == written and read_bundle(again.path).manifest.speed == other.speed
    # The report is still checked, and everything else is still covered.
    (written.path / "report.html").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"report\.html: expected"):
        read_bundle(written.path)
    changed = write_bundle(tmp_path / "changed", other, {**files, "parity.json": b"{}"})
    assert changed.manifest.version != manifest.version


def test_a_manifest_without_speeds_covers_its_report() -> None:
    released = ROOT / "tests" / "fixtures" / "released" / "schema-1-mlp"
    content = json.loads((released / "manifest.json").read_text())
    assert "speed" not in content
    spoiled = json.loads(json.dumps(content))
    spoiled["files"]["report.html"]["sha256"] = "0" * 64
    assert content_sha256(spoiled) != content_sha256(content)
    content["speed"] = spoiled["speed"] = None
    assert content_sha256(spoiled) == content_sha256(content)


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
    other = forge(bundle, store, parity_json=b"another report")
    promote(store, other.manifest.reference)
    assert resolve(store, "digits") == other.path
    (bundle.path / "model.ts").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.ts"):
        promote(store, bundle.manifest.reference)
    assert promoted_version(store, "digits") == other.manifest.version
    with pytest.raises(BundleError, match="expected one bundle name"):
        only_name(tmp_path / "empty")


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
