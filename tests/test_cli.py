"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from artifacts.references import list_bundles
from tests.conftest import ROOT, Ended, parityline


def test_every_command_has_help_with_an_example(cli: Callable[..., Ended]) -> None:
    overview = parityline("--help")
    assert overview.returncode == 0
    lines = overview.stdout.splitlines()
    contents = lines[: lines.index("Options:")]
    commands = [line.split()[0] for line in contents if line.startswith("  ")]
    assert {"recipes", "train", "tune", "verify", "show", "promote", "list", "serve", "score",
            "build", "push", "pull"} <= set(commands)  # fmt: skip
    panels = [line for line in contents if line.endswith(":") and not line.startswith(" ")]
    assert panels == ["Train:", "Look:", "Serve:", "Score:", "Move:"]
    for command in commands:
        result = cli(command, "--help", COLUMNS="80")
        assert result.returncode == 0
        assert f"Examples:\n  parityline {command}" in result.stdout
        assert result.stdout.startswith(f"Usage: parityline {command} ")
        # A line that is as long as it was typed is an example's.
        assert all(len(line) < 80 or "  parityline" in line for line in result.stdout.splitlines())


def test_the_table_of_contents_fits_a_terminal_with_a_line_a_command() -> None:
    result = parityline("--help", COLUMNS="80", LINES="24")
    contents = result.stdout.partition("Options:")[0].splitlines()
    assert max(map(len, contents)) < 80
    entries = [line for line in contents if line.startswith("  ")]
    # Each with its own words: none is wrapped, none cut off.
    assert all(line[2] != " " and not line.endswith("...") for line in entries)


def test_recipes_are_listed_one_a_line() -> None:
    result = parityline("recipes")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "breast-cancer", "cifar10", "cifar10-resnet", "digits", "digits-cnn", "fashion-mnist",
        "fashion-mnist-cnn", "fashion-mnist-resnet", "images", "mnist", "table",
    ]  # fmt: skip


def test_show_list_verify_and_promote_speak_of_the_bundle(
    cli: Callable[..., Ended], store: Path, digits: Predictor
) -> None:
    environment = {"PARITYLINE_STORE": str(store)}
    reference = digits.manifest.reference
    listed = cli("list", **environment)
    assert f"* {reference}" in listed.stdout
    shown = cli("show", "digits", **environment)
    assert shown.returncode == 0
    for part in (reference, "8 x 8", "accuracy", "model.onnx", "multiclass"):
        assert part in shown.stdout
    for backend in ("onnx", "eager"):
        verified = cli("verify", reference, "--backend", backend, **environment)
        assert verified.returncode == 0, verified.stderr
        assert "8 files are as released" in verified.stdout
        assert f"{backend} on cpu: " in verified.stdout
    promoted = cli("promote", reference, **environment)
    assert promoted.returncode == 0 and digits.manifest.version in promoted.stdout


def test_score_writes_parts_and_says_how_many(
    store: Path, digits: Predictor, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=digits.golden.raw)
    arguments = ["score", "digits", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")]
    result = parityline(*arguments, PARITYLINE_STORE=str(store))
    assert result.returncode == 0, result.stderr
    rows = len(digits.golden.raw)
    assert f"{rows} rows in, {rows} scored, 0 rejected" in result.stdout
    again = parityline(*arguments, PARITYLINE_STORE=str(store))
    assert (again.returncode, again.stdout) == (0, result.stdout)
    other = parityline(*arguments, "--format", "csv", PARITYLINE_STORE=str(store))
    assert other.returncode == 1 and "it holds a job with format" in other.stderr
    pq.write_table(pa.table({"image": [b"no", b"picture"]}), tmp_path / "bad.parquet")
    bad = ["score", "digits", str(tmp_path / "bad.parquet"), "--out", str(tmp_path / "bad")]
    strict = parityline(*bad, "--max-rejects", "1", PARITYLINE_STORE=str(store))
    assert strict.returncode == 1 and "expected at most 1, found 2" in strict.stderr
    assert "rejected 2: column 'image': expected a picture" in strict.stdout
    assert parityline(*bad, "--max-rejects", "2", PARITYLINE_STORE=str(store)).returncode == 0
    none = parityline(*bad, PARITYLINE_STORE=str(store))
    assert none.returncode == 1 and "none of 2 rows could be scored" in none.stderr
    rejected = tmp_path / "bad" / "rejected.parquet"
    assert rejected.exists() and str(rejected) in strict.stderr and str(rejected) in none.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "digit"], 1, "or a .toml file; did you mean 'digits'?"),
        (["train", "digits", "--target", "x"], 1, "data.target: digits is no table"),
        (["train", "digits", "--set", "epochs=3"], 1, "; did you mean 'train.epochs'?"),
        (["train", "digits", "--set", "model.dropuot=0"], 1, "; did you mean 'model.dropout'?"),
        (["show", "digts"], 1, "there are: breast-cancer, digits; did you mean 'digits'?"),
        (["shw", "digits"], 2, "No such command 'shw'. Did you mean 'show'?"),
        (["show", "n" * 300], 1, "manifest.json: File name too long"),
        (["train", "none.toml"], 1, "recipe none.toml: cannot be read"),
        (["train", "digits", "--set", "train.epoch=3"], 1, "unknown key train.epoch; allowed"),
        (["train", "digits", "--set", "epochs"], 1, "expected key=value"),
        (["train", "digits", "--data", "x"], 1, "digits is embedded"),
        (["train", "mnist", "--data", "nowhere"], 1, "data folder nowhere: expected a directory"),
        (["train", "digits", "--name", "a/b"], 1, "name: "),
        (["train", "digits", "--set", "train.device=cuda"], 1, "device cuda was asked for"),
        (["train", "digits", "--set", "data.val_fraction=0.9"], 1, "leave no rows for training"),
        (["verify", "nothing"], 1, "no bundle named 'nothing'"),
        (["verify", "./nothing"], 1, "nothing: no bundle there"),
        (["verify", "digits", "--backend", "trt"], 2, "Invalid value for '--backend'"),
        (["verify", "digits", "--device", "tpu"], 2, "Invalid value for '--device'"),
        (["train", "digits", "--set", "train.seed=18446744073709551616"], 1, "train.seed: "),
        (["train", "x" * 300], 1, "no recipe named"),
        (["verify", "digits", "--device", "cuda"], 1, "device cuda was asked for"),
        (["promote", "digits"], 1, "expected NAME@VERSION"),
        (["score", "digits", "none.npz", "--out", "o"], 1, "none.npz: expected a file"),
        (["nonsense"], 2, "No such command"),
        (["train"], 2, "Missing argument"),
        (["train", "digits", "--what"], 2, "No such option"),
        (["score", "digits", "x.npz"], 2, "Missing option"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    cli: Callable[..., Ended], store: Path, arguments: list[str], status: int, message: str
) -> None:
    result = cli(*arguments, PARITYLINE_STORE=str(store), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == status, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    if status == 1:
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_loss_that_is_no_number_ends_training_with_what_to_try(
    cli: Callable[..., Ended], tmp_path: Path
) -> None:
    result = cli(
        "train", "digits", "--set", "train.lr=1e30", "--set", "train.optimizer=sgd",
        "--set", "model.batch_norm=false", PARITYLINE_STORE=str(tmp_path),
    )  # fmt: skip
    assert result.returncode == 1
    assert "the loss became" in result.stderr and "epoch 1" in result.stderr
    assert "try a lower train.lr" in result.stderr
    assert list_bundles(tmp_path) == {}


def test_training_the_same_again_gives_the_same_version(tmp_path: Path) -> None:
    arguments = ["train", "digits", "--set", "train.epochs=1", "--set", "model.hidden=[8]"]
    versions = []
    for name in ("one", "two"):
        more = ["--json"] if name == "two" else []
        result = parityline(
            *arguments, *more, "--no-promote", PARITYLINE_STORE=str(tmp_path / name)
        )
        assert result.returncode == 0, result.stderr
        # With --json the document is alone on stdout.
        said = result.stderr if more else result.stdout
        assert "device: cpu" in said
        assert "promoted: " not in said
        versions.append(list_bundles(tmp_path / name)["digits"])
    assert versions[0] == versions[1] and len(versions[0]) == 1
    released = json.loads(result.stdout)
    assert released["reference"] == f"digits@{versions[1][0]}"
    assert 0 < released["metrics"]["test"]["accuracy"]["value"] < 1
    assert released["promoted"] is False


def test_a_synthetic_golden_holds_no_real_row(tmp_path: Path, digits: Predictor) -> None:
    from rich.console import Console

    from training.recipe import load_recipe
    from training.run import run

    overrides = ["train.epochs=1", "model.hidden=[8]", "export.golden=synthetic"]
    console = Console(quiet=True)
    bundle = run(load_recipe("digits", overrides), tmp_path, promote=False, console=console)
    golden = bundle.golden()
    assert (golden.labels == -1).all()
    real = {row.tobytes() for row in digits.golden.raw}
    assert not real & {row.tobytes() for row in golden.raw}


def test_the_python_api_predicts_pictures_and_rows(
    use_store: Path, digits: Predictor, cancer: Predictor
) -> None:
    from artifacts import DataError, open_bundle

    pictures = open_bundle("digits")
    answer = pictures.predict([encode_png(pixels) for pixels in digits.golden.raw[:5]])
    np.testing.assert_array_equal(answer.probabilities, digits.run(digits.golden.raw[:5])[1])
    assert answer.label == [digits.manifest.labels[index] for index in answer.index]
    with pytest.raises(DataError, match="row 1: expected a picture"):
        pictures.predict([encode_png(digits.golden.raw[0]), b"x"])
    table = open_bundle("breast-cancer")
    names = [column.name for column in cancer.manifest.input.columns]
    columns = dict(zip(names, cancer.golden.raw.T.tolist(), strict=True))
    np.testing.assert_array_equal(
        table.predict(columns).probabilities, cancer.run(cancer.golden.raw)[1]
    )
    columns[names[3]][2] = "many"
    with pytest.raises(DataError, match="row 2: column 'mean area': expected a number"):
        table.predict(columns)


def test_answers_that_depend_on_the_batch_are_refused_before_the_first(
    use_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import artifacts.predictor
    from artifacts import ParityError, open_bundle

    right = artifacts.predictor.open_backend

    def open_dependent(*arguments: object):
        model = right(*arguments)

        def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, probabilities = model(raw)
            return logits + np.float32(1e-5 if len(raw) == 1 else 0), probabilities

        return run

    monkeypatch.setattr("artifacts.predictor.open_backend", open_dependent)
    with pytest.raises(ParityError, match="answers depend on the batch: row 0"):
        open_bundle("digits")


def test_no_batch_is_larger_than_the_gate_has_proved(digits: Predictor) -> None:
    sizes = []

    def watched(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(raw))
        return digits.model(raw)

    raw = np.tile(digits.golden.raw, (3, 1, 1, 1))
    dataclasses.replace(digits, model=watched).run(raw)
    dataclasses.replace(digits, model=watched).run(raw, batch_size=10**6)
    assert max(sizes) == digits.manifest.max_batch_size == 256


def test_a_row_count_beyond_the_largest_batch_changes_no_bit(digits: Predictor) -> None:
    raw = np.tile(digits.golden.raw, (3, 1, 1, 1))
    _, probabilities = digits.run(raw)
    np.testing.assert_array_equal(probabilities, np.tile(digits.run(digits.golden.raw)[1], (3, 1)))
    assert digits.run(raw[:0])[1].shape == (0, 10)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_then_does(
    number: signal.Signals, status: int, cli: Callable[..., Ended], tmp_path: Path
) -> None:
    overrides = ["--set", "train.epochs=100000", "--set", "train.patience=100000"]
    command = [sys.executable, "-m", "parityline", "train", "digits", *overrides]
    environment = {"PARITYLINE_STORE": str(tmp_path / "store")}
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line.startswith("epoch") for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == (
        f"interrupted by {number.name}; nothing was left half-written: the same command with "
        "--resume goes on\n"
    )
    assert list_bundles(tmp_path / "store") == {}
    changed = cli("train", "digits", *overrides, "--resume", "--set", "train.lr=0.5", **environment)
    assert changed.returncode == 1
    assert "train.lr: 0.003 then, 0.5 now" in changed.stderr
