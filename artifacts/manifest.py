"""The bundle's contract: everything that `manifest.json` says, as one frozen model.

Nothing here knows how a model is trained, stored or served. Bundles released by any version
before must open for ever: a field is added with a default, a choice or a bound is never narrowed,
or `SCHEMA_VERSION` goes up.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Literal[1] = 1
VERSION_LENGTH = 12
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

ONNX, TORCHSCRIPT, EXPORT = "model.onnx", "model.ts", "model.pt2"
STATE_DICT, GOLDEN, PARITY, REPORT = "state_dict.pt", "golden.npz", "parity.json", "report.html"
BUNDLE_FILES = (STATE_DICT, ONNX, TORCHSCRIPT, EXPORT, GOLDEN, PARITY, REPORT)
# Without these it is no bundle; a later release may leave out or add others.
REQUIRED_FILES = (STATE_DICT, ONNX, GOLDEN, PARITY)
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)+$"

# Not part of the content that a version stands for: training the same thing again, with the same
# packages and threads, gives the same version.
_OUTSIDE_CONTENT = {"version", "content_sha256", "created", "commit"}


class Frozen(BaseModel):
    """Immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageInput(Frozen):
    """Pictures. Raw input: uint8, [N, channels, height, width], RGB or grayscale, 0 to 255.

    fit: what becomes of an encoded picture of another size. "crop" resizes the shorter side and
    cuts the middle out; "stretch" resizes both sides.
    """

    kind: Literal["image"] = "image"
    channels: Literal[1, 3]
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of raw input."""
        return (self.channels, self.height, self.width)


class Column(Frozen):
    """A numeric column of a table.

    missing: "reject" makes a missing cell an error of its row; "fill" lets the graph fill it.
    low, high, typical: the training part's range and median, for forms, checks and examples.
    """

    name: str = Field(min_length=1)
    type: Literal["number"] = "number"
    missing: Literal["reject", "fill"] = "reject"
    low: float
    high: float
    typical: float


class TableInput(Frozen):
    """Rows of numbers. Raw input: float64, [N, len(columns)], NaN where a cell is missing."""

    kind: Literal["table"] = "table"
    columns: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> TableInput:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("column names must be unique")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of raw input."""
        return (len(self.columns),)


InputSpec = Annotated[ImageInput | TableInput, Field(discriminator="kind")]


class Scale(Frozen):
    """float32(x) * factor."""

    step: Literal["scale"] = "scale"
    factor: float


class Normalize(Frozen):
    """(x - mean) / std, for each channel or column, in the precision that x has; then float32."""

    step: Literal["normalize"] = "normalize"
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _same_length(self) -> Normalize:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have the same length")
        return self


class Fill(Frozen):
    """NaN becomes the column's value."""

    step: Literal["fill"] = "fill"
    values: tuple[float, ...]


class Clip(Frozen):
    """Cut at -limit and +limit, so that no input, however wild, overflows the network."""

    step: Literal["clip"] = "clip"
    limit: float = Field(gt=0)


Step = Annotated[Scale | Normalize | Fill | Clip, Field(discriminator="step")]


class LinearNetwork(Frozen):
    """Logistic regression: one linear layer."""

    kind: Literal["linear"] = "linear"
    init: Literal["kaiming", "xavier"] = "xavier"


class MlpNetwork(Frozen):
    """Fully connected: for each width linear, batch norm if asked, activation, dropout; a head.

    The activations are those that ONNX Runtime computes bit for bit alike at every batch size on
    CPU (ELU, SELU and Mish differ in the last bit with a row's place in the batch).
    """

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        default=(128, 64), min_length=1
    )
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"
    batch_norm: bool = True
    dropout: float = Field(default=0.2, ge=0, lt=1)
    init: Literal["kaiming", "xavier"] = "kaiming"


NetworkConfig = Annotated[LinearNetwork | MlpNetwork, Field(discriminator="kind")]


class Estimate(Frozen):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


class Metrics(Frozen):
    """How well a part of the data is predicted. log_loss is in nats."""

    rows: int
    accuracy: Estimate
    log_loss: Estimate


class DataInfo(Frozen):
    """Where the labelled rows came from. fingerprint: sha256 over arrays, labels and split."""

    source: str
    fingerprint: str
    rows: dict[str, int]
    label_counts: dict[str, int]


class FormatParity(Frozen):
    """One format against eager, over every row, edge input and batch size of `parity.json`."""

    rows: int
    max_abs_diff: float
    label_disagreements: int


class FileInfo(Frozen):
    """What a file of the bundle must be."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Frozen):
    """Everything that is true of a released classifier.

    version: the start of content_sha256, which covers every field but the two, `created` and
    `commit`. temperature: what the network's logits are divided by inside the graph, so that the
    graph's `logits` are those whose softmax is `probabilities`. recipe: resolved, with the device
    and the thread count that were used, without the paths of the machine.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=r"^([0-9a-f]{12})?$")
    content_sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    created: str
    task: Literal["binary", "multiclass"]
    labels: tuple[str, ...] = Field(min_length=2)
    input: InputSpec
    preprocessing: tuple[Step, ...]
    network: NetworkConfig
    parameters: int
    temperature: float = Field(default=1.0, gt=0)
    max_batch_size: int = Field(ge=1)
    metrics: dict[str, Metrics]
    recipe: dict[str, Any]
    seed: int
    data: DataInfo
    packages: dict[str, str]
    commit: str | None
    onnx_opset: int
    parity: dict[str, FormatParity]
    files: dict[Annotated[str, Field(pattern=FILE_PATTERN)], FileInfo]

    @model_validator(mode="after")
    def _steps_fit_the_input(self) -> Manifest:
        width = self.input.shape[0]
        for step in self.preprocessing:
            values = getattr(step, "values", getattr(step, "mean", None))
            if values is not None and len(values) != width:
                raise ValueError(f"{step.step}: expected {width} values, found {len(values)}")
        return self

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Manifest:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if (self.task == "binary") != (len(self.labels) == 2):
            raise ValueError(f"a {self.task} task cannot have {len(self.labels)} labels")
        return self

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def input_name(self) -> str:
        """The graph's one input: uint8 `images` or float64 `cells`."""
        return input_name(self.input)

    def public(self) -> dict[str, Any]:
        """The part that a service tells its callers: no recipe, no paths, no file digests."""
        return self.model_dump(
            mode="json",
            include={
                "name", "version", "created", "task", "labels", "input", "preprocessing",
                "network", "parameters", "temperature", "max_batch_size", "metrics", "parity",
            },
        )  # fmt: skip


def content_sha256(content: dict[str, Any]) -> str:
    """What a manifest's content hashes to, computed on its JSON object as it stands.

    Not on the model read from it: that may know fields that the writer did not.
    """
    covered = {key: value for key, value in content.items() if key not in _OUTSIDE_CONTENT}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def input_name(spec: ImageInput | TableInput) -> str:
    """The name of the graph's input for this kind of data."""
    return "images" if spec.kind == "image" else "cells"
