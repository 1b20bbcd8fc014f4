"""What Tab offers, through the protocol that the shells use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.completion import complete_bundle, complete_version
from artifacts.predictor import Predictor
from tests.conftest import ROOT, parityline
from training.recipe_keys import offered, recipe_keys


def completed(*words: str, **environment: str) -> list[str]:
    """What bash is told, for the last of the words as bash cuts them."""
    result = parityline(
        _PARITYLINE_COMPLETE="complete_bash", COMP_WORDS="\n".join(("parityline", *words)),
        COMP_CWORD=str(len(words)), **environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_commands_options_and_choices_are_offered() -> None:
    assert completed("s") == ["show", "serve", "score"]
    assert completed("verify", "x", "--back") == ["--backend"]
    assert set(completed("verify", "x", "--backend", "")) == {
        "onnx", "torchscript", "export", "eager",
    }  # fmt: skip


def test_bundles_are_offered_as_bash_cuts_its_words(store: Path, digits: Predictor) -> None:
    environment = {"PARITYLINE_STORE": str(store)}
    version = digits.manifest.version
    assert completed("show", "br", **environment)[0] == "breast-cancer"
    # bash replaces what begins with the @, and leaves the name.
    assert completed("show", "digits", "@", **environment) == [f"@{version}"]
    assert completed("promote", "digits", "@", version[:3], **environment) == [f"@{version}"]


def test_keys_of_a_recipe_are_offered_with_their_choices() -> None:
    assert completed("train", "digits", "--set", "train.opt") == [
        f"train.optimizer={choice}" for choice in ("", "adam", "adamw", "muon", "sgd")
    ]
    # bash leaves what is before the =.
    assert completed("train", "digits", "--set", "train.optimizer", "=", "ad") == ["adam", "adamw"]


def test_names_come_first_and_versions_with_the_only_one(
    use_store: Path, digits: Predictor
) -> None:
    reference = digits.manifest.reference
    assert [name for name, _ in complete_bundle("")] == ["breast-cancer", "digits"]
    assert complete_bundle("dig") == [
        ("digits", f"the promoted version, {digits.manifest.version}"), (reference, "promoted"),
    ]  # fmt: skip
    assert complete_bundle("digits@") == [(reference, "promoted")]
    assert complete_bundle("nothing") == complete_bundle("nothing@") == []
    assert {name for name, _ in complete_version("")} > {reference}


def test_a_name_that_stands_for_no_version_is_offered_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "mine" / "0123456789ab"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    monkeypatch.setenv("PARITYLINE_STORE", str(tmp_path))
    assert complete_bundle("m") == [
        ("mine", "no version is promoted"), ("mine@0123456789ab", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_shells_that_do_not_cut_words_are_offered_whole_ones(
    shell: str, store: Path, digits: Predictor
) -> None:
    def offered_for(line: str) -> str:
        result = parityline(
            _PARITYLINE_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS=f"parityline {line}",
            _TYPER_COMPLETE_FISH_ACTION="get-args", PARITYLINE_STORE=str(store),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert digits.manifest.reference in offered_for("show digits@")
    choices = re.findall(r"train[\w.=]+", offered_for("train digits --set train.optimizer=ad"))
    assert choices == ["train.optimizer=adam", "train.optimizer=adamw"]


def test_a_store_that_cannot_be_read_offers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").write_text("")
    monkeypatch.setenv("PARITYLINE_STORE", str(tmp_path / "store"))
    assert complete_bundle("") == complete_version("") == []


def test_every_section_of_a_recipe_leads_to_its_keys() -> None:
    assert offered("") == ["data.", "model.", "transfer.", "train.", "export.", "tune."]
    assert "train.augment." in offered("train.") and "train.lr=" in offered("train.")
    assert offered("export.calibrate=") == [
        "export.calibrate=", "export.calibrate=false", "export.calibrate=true",
    ]  # fmt: skip
    assert "mlp" in recipe_keys()["model.kind"] and "model.hidden" in recipe_keys()
    assert offered("nothing") == []


def test_completing_a_bundle_imports_nothing_heavy() -> None:
    code = (
        "import parityline, sys; from artifacts.completion import complete_bundle;"
        "complete_bundle(''); print(' '.join(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "pydantic", "rich", "torch", "bentoml", "pyarrow"} & set(loaded)


@pytest.mark.skipif(shutil.which("bash") is None, reason="it is about bash")
def test_bash_itself_completes_a_version(store: Path, digits: Predictor, tmp_path: Path) -> None:
    script = parityline(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    (tmp_path / "complete.sh").write_text(script.stdout)
    program = tmp_path / "parityline"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m parityline "$@"\n')
    program.chmod(0o755)
    # What bash does when Tab is pressed.
    lines = f"""
        source {tmp_path}/complete.sh
        COMP_WORDS=(parityline show digits @ {digits.manifest.version[:2]}) COMP_CWORD=4
        _parityline_completion {program}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PARITYLINE_STORE": str(store)},
    )  # fmt: skip
    assert done.stdout.strip() == f"@{digits.manifest.version}"
