"""training -> artifacts <- serving, held in fresh processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

TRAINING_LIBRARIES = {"optuna", "mlflow", "sklearn", "torchvision", "onnx", "torch", "training"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in result.stdout.split()}


def test_artifacts_import_neither_torch_nor_bentoml_nor_another_room() -> None:
    loaded = modules_after(
        "import artifacts.predictor, artifacts.backends, artifacts.summary, artifacts.references"
    )
    assert "artifacts" in loaded
    assert not loaded & {"torch", "bentoml", "training", "serving", "sklearn"}


def test_the_service_pulls_in_no_training_library() -> None:
    loaded = modules_after("import serving.service, serving.selfcheck, serving.launch")
    assert "bentoml" in loaded
    assert not loaded & TRAINING_LIBRARIES


def test_scoring_needs_neither_bentoml_nor_a_training_library() -> None:
    loaded = modules_after("import serving.scoring.job, serving.scoring.command")
    assert "pyarrow" in loaded
    assert not loaded & (TRAINING_LIBRARIES | {"bentoml"})


def test_training_imports_nothing_of_serving() -> None:
    loaded = modules_after("import training.run")
    assert "torch" in loaded
    assert not loaded & {"serving", "bentoml"}
    # Seconds and 200 MB, in a process of its own.
    assert "mlflow" not in loaded


@pytest.mark.parametrize("package", ["artifacts", "serving"])
def test_no_source_file_names_another_room(package: str) -> None:
    others = {"artifacts": ("training", "serving"), "serving": ("training",)}[package]
    for path in (ROOT / package).rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in others, f"{path}: {line}"


def test_the_front_door_opens_before_anything_heavy_is_imported() -> None:
    heavy = {"numpy", "pydantic", "pyarrow", "onnxruntime", "torch", "bentoml", "pandas"}
    assert not modules_after("import parityline, serving.scoring.processes") & heavy


def test_a_scoring_process_does_without_pandas() -> None:
    arrays = "import pyarrow as pa; pa.array(['a']); pa.table({'a': [1]}).schema.empty_table()"
    leave = "from serving.scoring.processes import set_up_arrow; set_up_arrow()"
    assert "pandas" in modules_after(arrays)
    assert "pandas" not in modules_after(f"{leave}; {arrays}")
    # Whoever wants it has it.
    assert "pandas" in modules_after(f"{leave}; {arrays}; import pandas; pandas.DataFrame()")
