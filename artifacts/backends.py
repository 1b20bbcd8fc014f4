"""A bundle's formats as functions: raw input in, logits and probabilities out.

ONNX Runtime is the default. torch is imported only by the three torch backends.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.bound import ALONE_ON_CUDA, BoundSession, faster
from artifacts.bundle import Bundle
from artifacts.devices import BACKENDS, Device
from artifacts.errors import BundleError, DeviceError
from artifacts.manifest import EXPORT, ONNX, STATE_DICT, TORCHSCRIPT
from artifacts.vetting import vet_export, vet_torchscript

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# raw [N, *input shape] -> (logits, probabilities), both float32 [N, K]; any N >= 1.
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def open_backend(bundle: Bundle, backend: str, device: Device, threads: int) -> Model:
    """One format of a verified bundle, ready to answer.

    threads: for one answer. On CPU, ONNX Runtime with one thread gives each row the same bits in
    every batch; that is what the service and the scoring job use.
    Raises DeviceError where the backend or the device is not there, BundleError where the file is
    not what the backend takes.
    """
    if backend not in BACKENDS:
        raise DeviceError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend == "onnx":
        return open_onnx(bundle.read(ONNX), device, threads)
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"backend {backend!r} needs torch, which is not installed: "
            "pip install 'parityline[torch]', or take backend onnx"
        ) from error
    torch.set_num_threads(threads)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"backend {backend!r} on cuda: this torch ({torch.__version__}) has no CUDA; "
                "install its CUDA build, or take device cpu"
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    if backend == "torchscript":
        return open_torchscript(bundle.read(TORCHSCRIPT), device)
    if backend == "export":
        return open_export(bundle.read(EXPORT), device)
    return _open_eager(bundle, device)


def open_onnx(payload: bytes, device: Device, threads: int = 1) -> Model:
    """`model.onnx` in ONNX Runtime; on CUDA without TF32, and never silently on CPU instead."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        if hasattr(onnxruntime, "preload_dlls"):
            # Takes the CUDA libraries that torch's wheels bring, where they are installed.
            onnxruntime.preload_dlls()
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    try:
        with ALONE_ON_CUDA:
            session = onnxruntime.InferenceSession(payload, options, providers=providers)
    # ONNX Runtime's exceptions share no base below Exception.
    except Exception as error:
        raise BundleError(f"{ONNX}: cannot load it on {device}: {_first_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            "ONNX Runtime could not make a CUDA session (its CUDA or cuDNN libraries do not "
            f"load) and fell back to {session.get_providers()[0]}; take device cpu, or install "
            "onnxruntime-gpu with its CUDA libraries"
        )
    name = session.get_inputs()[0].name
    outputs = ["logits", "probabilities"]

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = session.run(outputs, {name: raw})
        return logits, probabilities

    def run_alone(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with ALONE_ON_CUDA:
            return run(raw)

    return run if device == "cpu" else _with_graphs(payload, options, run_alone)


def _with_graphs(payload: bytes, options: Any, plain: Model) -> Model:
    """On CUDA: recorded graphs for the batch sizes at which they are faster here."""
    import onnxruntime

    provider = ("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})
    try:
        with ALONE_ON_CUDA:
            session = onnxruntime.InferenceSession(payload, options, providers=[provider])
        source = session.get_inputs()[0]
        dtype = np.uint8 if source.type == "tensor(uint8)" else np.float64
        row = np.zeros((1, *source.shape[1:]), dtype=dtype)
        return faster(plain, BoundSession(session, "cuda"), row)
    # A network that cannot be recorded (a copy to the CPU within it, say) is answered as before.
    except Exception as error:  # noqa: BLE001
        _log.info("no CUDA graphs: %s", _first_line(error))
        return plain


def open_torchscript(payload: bytes, device: Device) -> Model:
    """`model.ts` in TorchScript's interpreter."""
    import torch

    vet_torchscript(payload)
    with warnings.catch_warnings():
        # torch.jit is deprecated upstream since 2.14; model.pt2 is its successor.
        warnings.simplefilter("ignore")
        try:
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(payload), map_location=device
            )
        except RuntimeError as error:
            raise BundleError(f"{TORCHSCRIPT}: cannot load it: {_first_line(error)}") from error
    return run_module(module.eval(), device)


def open_export(payload: bytes, device: Device) -> Model:
    """`model.pt2`: the torch.export program.

    torch.export.load falls back to unpickling anything where weights_only fails; the environment
    variable holds it to tensors.
    """
    import torch
    from torch.export.passes import move_to_device_pass

    vet_export(payload)
    previous = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    # It logs the traceback of what it raises.
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        program = torch.export.load(io.BytesIO(payload))
    # torch.export.load documents no exceptions; a damaged archive raises many.
    except Exception as error:
        raise BundleError(f"{EXPORT}: cannot load it: {_first_line(error)}") from error
    finally:
        log.setLevel(level)
        if previous is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = previous
    if device == "cuda":
        program = move_to_device_pass(program, "cuda")
    return run_module(program.module(), device)


def _open_eager(bundle: Bundle, device: Device) -> Model:
    """The network built from the manifest, with the weights of `state_dict.pt`."""
    import torch

    from artifacts.networks import DeployedClassifier, build_network
    from artifacts.preprocess import Preprocess

    manifest = bundle.manifest
    weights = io.BytesIO(bundle.read(STATE_DICT))
    # Without storage: a manifest cannot ask for more memory than the weights have.
    with torch.device("meta"):
        network = build_network(
            manifest.network, manifest.input.shape, manifest.preprocessing, len(manifest.labels)
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state, assign=True)
    # weights_only raises pickle.UnpicklingError, a bad archive RuntimeError, other keys either.
    except Exception as error:
        raise BundleError(
            f"{STATE_DICT}: not this network's weights: {_first_line(error)}"
        ) from error
    preprocess = Preprocess(manifest.preprocessing, manifest.input.shape)
    model = DeployedClassifier(preprocess, network, manifest.temperature)
    return run_module(model.eval().to(device), device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run_module(module: torch.nn.Module, device: Device) -> Model:
    """A torch module (in eval mode, on `device`) as a function of arrays."""
    import torch

    def run(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # torch has no read-only tensors, and warns of arrays that are, as a request's body is.
        tensor = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
        with torch.inference_mode():
            logits, probabilities = module(tensor.to(device))
            return logits.cpu().numpy(), probabilities.cpu().numpy()

    return run
