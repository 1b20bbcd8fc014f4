"""Bundles in and out of BentoML's model store."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.bundle import Bundle
from artifacts.errors import BundleError, DataError
from artifacts.references import promoted_version
from serving.model_store import pull, push
from tests.conftest import parityline
from tests.forgery import forge

# BentoML's own use of pathspec, seen where it is imported in this process.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """BentoML's model store, empty, in this process."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")
    folder = tmp_path / "models"
    folder.mkdir()
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield folder
    BentoMLContainer.model_store.reset()


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def pushed(bundle: Bundle, models: Path) -> tuple[str, Path]:
    """The pushed bundle's tag, and the folder of its files in BentoML's store."""
    tag, new = push(bundle)
    assert new
    manifest = bundle.manifest
    return tag, models / tag.replace(":", "/") / "store" / manifest.name / manifest.version


def test_a_bundle_comes_back_as_it_went_in(bundle: Bundle, models: Path, tmp_path: Path) -> None:
    tag, folder = pushed(bundle, models)
    assert tag == f"digits:{bundle.manifest.version}"
    # Nothing but the bundle's own files and what BentoML says of it.
    assert digests(folder) == digests(bundle.path)
    assert set(digests(models)) == {
        "digits/latest",
        f"digits/{bundle.manifest.version}/model.yaml",
        *(str((folder / name).relative_to(models)) for name in digests(folder)),
    }
    back = pull(tag, tmp_path / "other")
    assert digests(back.path) == digests(bundle.path)
    assert back.path == tmp_path / "other" / "digits" / bundle.manifest.version
    assert promoted_version(tmp_path / "other", "digits") is None
    # The name alone is the one that was pushed last; what is there already stays.
    assert pull("digits", tmp_path / "other", promote=True).path == back.path
    assert promoted_version(tmp_path / "other", "digits") == bundle.manifest.version


def test_a_manifest_comes_back_byte_for_byte_however_it_was_written(
    bundle: Bundle, models: Path, tmp_path: Path
) -> None:
    file = bundle.path / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    tag, _ = pushed(bundle, models)
    assert pull(tag, tmp_path / "other").path.joinpath("manifest.json").read_bytes() == (
        file.read_bytes()
    )


def test_pushing_again_changes_nothing(bundle: Bundle, models: Path) -> None:
    pushed(bundle, models)
    before = digests(models)
    assert push(bundle) == (f"digits:{bundle.manifest.version}", False)
    assert digests(models) == before


def test_a_tag_that_holds_another_bundle_is_not_overwritten(
    bundle: Bundle, models: Path, tmp_path: Path
) -> None:
    assert push(bundle, "mine:1") == ("mine:1", True)
    before = digests(models)
    other = forge(bundle, tmp_path / "forged", parity_json=b"another")
    with pytest.raises(BundleError, match=f"found {bundle.manifest.reference}: choose another"):
        push(other, "mine:1")
    assert digests(models) == before
    assert pull("mine:1", tmp_path / "other").manifest == bundle.manifest


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.npz"])
def test_a_changed_file_is_named_and_nothing_appears(
    bundle: Bundle, models: Path, tmp_path: Path, name: str
) -> None:
    tag, folder = pushed(bundle, models)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        pull(tag, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(BundleError, match=name):
        push(bundle)


def test_a_bundle_under_another_name_is_refused(
    bundle: Bundle, models: Path, tmp_path: Path
) -> None:
    tag, folder = pushed(bundle, models)
    folder.parent.rename(folder.parent.with_name("cats"))
    with pytest.raises(BundleError, match="expected this bundle there, found digits@"):
        pull(tag, tmp_path / "other")


class Planted:
    """Says when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("unpickled",))


def test_a_pickle_beside_the_bundle_is_refused_unread(
    bundle: Bundle, models: Path, tmp_path: Path
) -> None:
    tag, folder = pushed(bundle, models)
    (folder.parents[2] / "custom_objects.pkl").write_bytes(pickle.dumps({"a": Planted()}))
    with pytest.raises(BundleError, match=r"custom_objects\.pkl, which is never loaded"):
        pull(tag, tmp_path / "other")


def test_models_of_others_and_half_written_ones_are_refused(
    bundle: Bundle, models: Path, tmp_path: Path
) -> None:
    import bentoml

    with bentoml.models.create("foreign:1") as model:
        Path(model.path_of("weights.bin")).write_bytes(b"x")
    with pytest.raises(BundleError, match="that `parityline push` made.*found model.yaml, weights"):
        pull("foreign:1", tmp_path / "other")
    tag, folder = pushed(bundle, models)
    shutil.copytree(folder, folder.with_name("0" * 12))
    with pytest.raises(BundleError, match="and 2 bundles"):
        pull(tag, tmp_path / "other")
    (folder.parents[2] / "model.yaml").write_text("signatures: 3\n")
    with pytest.raises(BundleError, match=r"model\.yaml cannot be read"):
        pull(tag, tmp_path / "other")
    (folder.parents[2] / "model.yaml").unlink()
    for again in (lambda: pull(tag, tmp_path / "other"), lambda: push(bundle)):
        with pytest.raises(BundleError, match="not a whole model, delete it"):
            again()


def test_a_tag_is_never_guessed(bundle: Bundle, models: Path, tmp_path: Path) -> None:
    tag, _ = pushed(bundle, models)
    for absent in (tag[:-1], "digits:1", "nothing", "nothing:1"):
        with pytest.raises(BundleError, match=f"no model {absent} in BentoML's store"):
            pull(absent, tmp_path / "other")
    for wrong in ("../x:1", "a b", "", "x:" + "1" * 80):
        with pytest.raises(DataError, match="expected a tag NAME:VERSION"):
            pull(wrong, tmp_path / "other")
    with pytest.raises(DataError, match="found no version"):
        push(bundle, "mine")


def test_both_commands_say_what_they_did(bundle: Bundle, tmp_path: Path) -> None:
    environment = {
        "BENTOML_HOME": str(tmp_path / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
        "PARITYLINE_STORE": str(bundle.path.parent.parent),
    }
    (tmp_path / "home").mkdir()
    version = bundle.manifest.version
    assert parityline("push", "digits", **environment).stdout == f"pushed: digits:{version}\n"
    again = parityline("push", "digits", **environment).stdout
    assert again == f"digits:{version} is there already, and as released\n"
    environment["PARITYLINE_STORE"] = str(tmp_path / "other")
    done = parityline("pull", "digits", "--promote", **environment)
    assert f"pulled: digits@{version}" in done.stdout, done.stderr
    assert "promoted: digits now means this version" in done.stdout
    refused = parityline("pull", "nothing", **environment)
    assert refused.returncode == 1
    assert refused.stderr == ("error: no model nothing in BentoML's store: `bentoml models list`\n")
