"""Promises 3 and 7: bundles whose digests fit, and whose content does not."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from artifacts.backends import open_export
from artifacts.bundle import Bundle, Golden, write_bundle
from artifacts.errors import BundleError, ParityError
from artifacts.predictor import open_bundle
from artifacts.vetting import _is_size
from tests.forgery import files_of, forge, rewritten


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
    for number, (message, spoiled) in enumerate(cases.items()):
        forged = forge(bundle, tmp_path / f"case{number}", golden_npz=spoiled.encode())
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


@pytest.mark.parametrize("vetted", [True, False])
def test_a_pickled_tensor_in_an_export_is_never_loaded(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vetted: bool
) -> None:
    """Two guards, each of which holds alone."""
    import torch

    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(trap),))

    saved = io.BytesIO()
    torch.save(Trap(), saved)

    def armed(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            content = json.loads(data)
            for weight in content["config"].values():
                weight["use_pickle"] = True
            return json.dumps(content).encode()
        return saved.getvalue() if "/data/weights/weight_" in name else data

    payload = rewritten(bundle.read("model.pt2"), armed)
    assert b'"use_pickle": true' in payload
    if not vetted:
        monkeypatch.setattr("artifacts.backends.vet_export", lambda *_: None)
    reason = "it holds a pickled tensor" if vetted else "UnpicklingError"
    with pytest.raises(BundleError, match=rf"model\.pt2: cannot load it: {reason}"):
        open_export(payload, "cpu")
    assert not trap.exists()


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
            data.replace(b"torch.div(", b"raw.save(") if "preprocess" in name else data
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
        "the operator _operator.call": in_model(
            lambda content: content["graph_module"]["graph"]["nodes"][0].update(
                target="_operator.call"
            )
        ),
    }
    for reason, spoiled in cases.items():
        assert spoiled != payload
        forged = forge(bundle, tmp_path / "forged", model_pt2=spoiled)
        with pytest.raises(BundleError, match=rf"model\.pt2: cannot load it: it holds {reason}"):
            open_bundle(str(forged.path), backend="export")
    assert not trap.exists()


SYMBOL = "Symbol('s38', positive=True, integer=True)"


def test_expressions_of_sizes_are_whole_number_arithmetic_alone() -> None:
    for size in ("s38", "7", SYMBOL, f"Mul(Integer(4), {SYMBOL})", f"Min(1, Mul(2, {SYMBOL}))"):
        assert _is_size(size)
    for other in (
        "", "Mul()", "Mul(4, )", f"Mul(4, {SYMBOL}) + 1", "Pow(9, Pow(9, 9))", "Mul(4, exit())",
        "Mul.__class__", "Symbol('x')", "Integer(" + "9" * 99 + ")", "Mul(" * 300 + "1" + ")" * 300,
        "Mul(s1, Symbol('__import__', positive=True, integer=True))", "4\n",
    ):  # fmt: skip
        assert not _is_size(other)


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
