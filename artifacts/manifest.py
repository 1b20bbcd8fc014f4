"""The bundle's contract: everything that `manifest.json` says, as one frozen model.

Nothing here knows how a model is trained, stored or served. Bundles released by any version
before must open for ever: a field is added with a default, a choice or a bound is never narrowed,
or `SCHEMA_VERSION` goes up.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from artifacts.configs import NetworkConfig
from artifacts.inputs import Frozen, InputSpec, input_name
from artifacts.profile import ColumnProfile, check_profile
from artifacts.shelves import NAME_PATTERN
from artifacts.steps import Encode, Reorder, Step

SCHEMA_VERSION: Literal[1] = 1

ONNX, TORCHSCRIPT, EXPORT = "model.onnx", "model.ts", "model.pt2"
STATE_DICT, GOLDEN, PARITY, REPORT = "state_dict.pt", "golden.npz", "parity.json", "report.html"
EVIDENCE = "evidence.json"
BUNDLE_FILES = (STATE_DICT, ONNX, TORCHSCRIPT, EXPORT, GOLDEN, PARITY, EVIDENCE, REPORT)
# Without these it is no bundle; a later release may leave out or add others.
REQUIRED_FILES = (STATE_DICT, ONNX, GOLDEN, PARITY)
FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)+$"

# Not part of the content that a version stands for: training the same thing again, with the same
# packages and threads, gives the same version.
_OUTSIDE_CONTENT = {"version", "content_sha256", "created", "commit", "speed"}


class Estimate(Frozen):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


class LabelMetrics(Frozen):
    """How well one label is told from the others, one against the rest; support: its rows.

    None where the figure is not defined: precision of a label that is never answered, recall of
    one that has no row, f1 where both hold.
    """

    support: int
    precision: Estimate | None = None
    recall: Estimate | None = None
    f1: Estimate | None = None


class Metrics(Frozen):
    """How well a part of the data is predicted. log_loss is in nats.

    auc: area under the ROC curve; with more than two labels the mean of one against the rest.
    None where a label has no row in the part.
    average_precision: of the second of two labels (the area under precision against recall).
    per_label: by the label's name. confusion: rows of the part, counted by true label (outer) and
    answered label (inner), in the order of `labels`; None where there are very many labels.
    Accuracy, per_label and confusion are of the answered labels, at the manifest's threshold.
    """

    rows: int
    accuracy: Estimate
    log_loss: Estimate
    auc: Estimate | None = None
    average_precision: Estimate | None = None
    per_label: dict[str, LabelMetrics] = Field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None

    @property
    def headline(self) -> dict[str, Estimate]:
        """The figures of the whole part that there are, by the names that people know."""
        figures = {
            "accuracy": self.accuracy,
            "AUC": self.auc,
            "PR-AUC": self.average_precision,
            "log loss": self.log_loss,
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


class ReliabilityBin(Frozen):
    """Rows whose confidence lies in one bin; confidence and accuracy are means, None of no rows."""

    rows: int
    confidence: float | None = None
    accuracy: float | None = None


class CalibrationFigures(Frozen):
    """How far probabilities can be taken at their word, on one part.

    ece: expected calibration error of the most probable label, over 15 bins of equal width (Guo
    et al. 2017). log_loss: in nats. brier: the squared error summed over the labels, 0 to 2 (Brier
    1950). bins: those of the error, from confidence 0 to 1; kept for the test part alone.
    """

    ece: float
    log_loss: Estimate
    brier: Estimate
    bins: tuple[ReliabilityBin, ...] = ()


class Calibration(Frozen):
    """The validation and the test part before and after the logits are divided by `temperature`.

    note: why it was left at 1, where it was.
    """

    before: dict[str, CalibrationFigures]
    after: dict[str, CalibrationFigures]
    note: str | None = None


class Verdict(Frozen):
    """What the curves and the metrics say of the fit.

    gap: accuracy on the training part less that on the test part. since_epoch: where validation
    loss was lowest before it rose, for overfitting that shows there. advice: what to try, each
    naming keys of the recipe.
    """

    kind: Literal["underfitting", "overfitting", "fine"]
    gap: Estimate
    since_epoch: int | None = None
    text: str
    advice: tuple[str, ...] = ()


class Epoch(Frozen):
    """One epoch of training. Losses in nats; those of the training part were measured while it was
    trained on, with augmentation and dropout.

    lr: of the epoch's last step. gradient_norm: of the last step where it was measured.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    lr: float
    gradient_norm: float | None = None


class Study(Frozen):
    """The search that a recipe comes from.

    objective: what of the validation part was looked at. space: what each key of the recipe could
    be, a line each. trials: how many there were, by how they ended. trial: the number of the one
    that was released, whose objective was `value` and which set `params`; `unchanged`: it is the
    recipe as it was. members: the trials whose networks are averaged, where several are.
    difference: accuracy on the test part of best_trial, the best one, less that of the recipe as
    it was, each trained with `repeats` seeds; None where they were not compared.
    """

    name: str
    objective: Literal["accuracy", "log_loss", "auc"]
    space: tuple[str, ...]
    sampler: str
    pruner: str
    trials: dict[str, int]
    best_trial: int
    trial: int
    value: float
    params: dict[str, Any]
    unchanged: bool = False
    members: tuple[int, ...] = ()
    repeats: int = 0
    difference: Estimate | None = None


class DataInfo(Frozen):
    """Where the labelled rows came from. fingerprint: sha256 over arrays, labels and split.

    notes: what was left out or found while reading them, in words.
    """

    source: str
    fingerprint: str
    rows: dict[str, int]
    label_counts: dict[str, int]
    notes: tuple[str, ...] = ()


class FormatParity(Frozen):
    """One format against eager, over every row, edge input and batch size of `parity.json`."""

    rows: int
    max_abs_diff: float
    label_disagreements: int


class FormatSpeed(Frozen):
    """Rows a second of one format: given one at a time, and `batch_size` at a time."""

    alone: float
    batched: float
    batch_size: int = Field(ge=1)


class Speed(Frozen):
    """How fast the formats answered, on one thread of the CPU that the bundle was released on.

    Each figure is the median of short rounds: what to expect, not a benchmark.
    """

    cpu: str
    formats: dict[str, FormatSpeed]


class FileInfo(Frozen):
    """What a file of the bundle must be."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Frozen):
    """Everything that is true of a released classifier.

    version: the start of content_sha256, which covers what `content_sha256` below says.
    temperature: what the network's logits are divided by inside the graph, so that the
    graph's `logits` are those whose softmax is `probabilities`. threshold: what the second of two
    labels' probability must exceed for it to be the answer; see `artifacts.decision`.
    baseline: of the test part, had each row been answered by the labels' shares of the training
    part alone. recipe: resolved, with the device and the thread count that were used, without the
    paths of the machine. profile: what a table's columns looked like in training, for
    `artifacts.drift`; empty for pictures.
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
    threshold: float = Field(default=0.5, gt=0, lt=1)
    max_batch_size: int = Field(ge=1)
    metrics: dict[str, Metrics]
    baseline: Metrics | None = None
    calibration: Calibration | None = None
    verdict: Verdict | None = None
    history: tuple[Epoch, ...] = ()
    kept_epoch: int | None = None
    study: Study | None = None
    recipe: dict[str, Any]
    seed: int
    data: DataInfo
    profile: tuple[ColumnProfile, ...] = ()
    packages: dict[str, str]
    commit: str | None
    onnx_opset: int
    parity: dict[str, FormatParity]
    speed: Speed | None = None
    files: dict[Annotated[str, Field(pattern=FILE_PATTERN)], FileInfo]

    @model_validator(mode="after")
    def _steps_fit_the_input(self) -> Manifest:
        width = self.input.shape[0]
        for step in self.preprocessing:
            if isinstance(step, Encode | Reorder):
                self._check_encoding(step, width)
                continue
            values = getattr(step, "values", getattr(step, "mean", None))
            if values is not None and len(values) != width:
                raise ValueError(f"{step.step}: expected {width} values, found {len(values)}")
        return self

    def _check_encoding(self, step: Encode | Reorder, width: int) -> None:
        wanted = "table" if isinstance(step, Encode) else "image"
        if self.input.kind != wanted:
            raise ValueError(f"{step.step}: it is for {wanted} input")
        if isinstance(step, Encode):
            if len(self.preprocessing) != 1 or len(step.inputs) != width:
                raise ValueError(
                    f"encode: expected the only step, of {width} inputs, found {len(step.inputs)}"
                )
        elif sorted(step.channels) != list(range(width)):
            raise ValueError(f"reorder: expected each of {width} channels once")

    @model_validator(mode="after")
    def _profile_fits_the_input(self) -> Manifest:
        check_profile(self.profile, self.input)
        return self

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Manifest:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if (self.task == "binary") != (len(self.labels) == 2):
            raise ValueError(f"a {self.task} task cannot have {len(self.labels)} labels")
        if self.threshold != 0.5 and self.task != "binary":
            raise ValueError(f"threshold: expected 0.5 for {len(self.labels)} labels")
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
                "network", "parameters", "temperature", "threshold", "max_batch_size", "metrics",
                "parity",
            },
        )  # fmt: skip


def content_sha256(content: dict[str, Any]) -> str:
    """What a manifest's content hashes to, computed on its JSON object as it stands.

    Not on the model read from it: that may know fields that the writer did not.

    Left out are the hash itself and the version, and what no two runs have in common: `created`,
    `commit` and `speed`. A manifest that holds the key `speed` leaves out report.html too, which
    shows the three, so that the same training still gives the same version; that file's size and
    sha256 are in `files` and are checked like any other's.
    """
    covered = {key: value for key, value in content.items() if key not in _OUTSIDE_CONTENT}
    if "speed" in content and isinstance(content.get("files"), dict):
        covered["files"] = {k: info for k, info in content["files"].items() if k != REPORT}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
