"""What the Open Inference Protocol tells about the server and its one model, as JSON documents.

In the forms of KServe's specification and of Triton's extensions for the model's configuration,
its statistics and the repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from artifacts.cells import ColumnSpec
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
_COLUMN_DATATYPES = {"number": "FP64", "boolean": "BOOL", "category": "BYTES", "date": "BYTES"}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What all workers have done with a model; times in nanoseconds, summed.

    last_inference_ms: when the last request was answered, since 1970, 0 if none was.
    inference_count: rows answered. execution_count: runs of the model, each of a batch.
    success, fail: requests, from their arrival to their answer. queue: their wait for the model.
    compute: runs of the model.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success_count: int = 0
    success_ns: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    queue_count: int = 0
    queue_ns: int = 0
    compute_count: int = 0
    compute_ns: int = 0


@dataclass(frozen=True)
class _TensorSpec:
    """dims: of one row."""

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.dims]}

    @property
    def config(self) -> dict[str, Any]:
        kind = _CONFIG_TYPES.get(self.datatype, f"TYPE_{self.datatype}")
        return {"name": self.name, "data_type": kind, "dims": list(self.dims)}


def server_metadata() -> dict[str, Any]:
    """GET /v2."""
    try:
        release = version("parityline")
    except PackageNotFoundError:
        # A service built from a folder has the code without the distribution.
        release = "unknown"
    return {"name": "parityline", "version": release, "extensions": list(EXTENSIONS)}


def model_metadata(manifest: Manifest, backend: str) -> dict[str, Any]:
    """GET /v2/models/NAME."""
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": _platform(backend),
        "inputs": [tensor.metadata for tensor in _inputs(manifest)],
        "outputs": [tensor.metadata for tensor in _outputs(manifest)],
    }


def model_config(manifest: Manifest, backend: str, *, max_rows: int) -> dict[str, Any]:
    """GET /v2/models/NAME/config. max_rows: of one request."""
    inputs = [tensor.config for tensor in _inputs(manifest)]
    if isinstance(manifest.input, ImageInput):
        inputs[0]["format"] = "FORMAT_NCHW"
    return {
        "name": manifest.name,
        "platform": _platform(backend),
        "backend": "parityline",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_rows,
        "input": inputs,
        "output": [tensor.config for tensor in _outputs(manifest)],
        # Requests that wait for the model go through it together, as they came.
        "dynamic_batching": {"preserve_ordering": True},
        "parameters": {"labels": {"string_value": "\n".join(manifest.labels)}},
    }


def model_statistics(manifest: Manifest, statistics: Statistics) -> dict[str, Any]:
    """GET /v2/models/stats, and of one model."""

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    compute = duration(statistics.compute_count, statistics.compute_ns)
    # Copying in and out is part of the run.
    nothing = duration(0, 0)
    return {
        "model_stats": [
            {
                "name": manifest.name,
                "version": manifest.version,
                "last_inference": statistics.last_inference_ms,
                "inference_count": statistics.inference_count,
                "execution_count": statistics.execution_count,
                "inference_stats": {
                    "success": duration(statistics.success_count, statistics.success_ns),
                    "fail": duration(statistics.fail_count, statistics.fail_ns),
                    "queue": duration(statistics.queue_count, statistics.queue_ns),
                    "compute_input": nothing,
                    "compute_infer": compute,
                    "compute_output": nothing,
                    "cache_hit": nothing,
                    "cache_miss": nothing,
                },
                "batch_stats": [],
            }
        ]
    }


def repository_index(manifest: Manifest, *, ready: bool, only_ready: bool) -> list[dict[str, str]]:
    """POST /v2/repository/index. only_ready: leave out a model that is not."""
    if only_ready and not ready:
        return []
    state = {"state": "READY" if ready else "UNAVAILABLE", "reason": "" if ready else "stopping"}
    return [{"name": manifest.name, "version": manifest.version, **state}]


def trace_settings() -> dict[str, Any]:
    """GET /v2/trace/setting: nothing is traced."""
    return {
        "trace_level": ["OFF"],
        "trace_rate": "0",
        "trace_count": "0",
        "log_frequency": "0",
        "trace_file": "",
    }


def log_settings() -> dict[str, Any]:
    """GET /v2/logging: warnings and errors, to the console."""
    return {
        "log_file": "",
        "log_info": False,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


def _inputs(manifest: Manifest) -> list[_TensorSpec]:
    spec = manifest.input
    if isinstance(spec, ImageInput):
        return [_TensorSpec("images", "UINT8", spec.shape)]
    return [_TensorSpec(column.name, _datatype(column), (1,)) for column in spec.columns]


def _outputs(manifest: Manifest) -> list[_TensorSpec]:
    classes = len(manifest.labels)
    return [
        _TensorSpec("logits", "FP32", (classes,)),
        _TensorSpec("probabilities", "FP32", (classes,)),
        _TensorSpec("label", "BYTES", ()),
    ]


def _datatype(column: ColumnSpec) -> str:
    """The one that can say everything that the column's cells may be."""
    if column.type == "boolean" and column.missing == "fill":
        # Neither of BOOL's two says that a value is missing.
        return "BYTES"
    return _COLUMN_DATATYPES[column.type]


def _platform(backend: str) -> str:
    return f"parityline_{backend}"
