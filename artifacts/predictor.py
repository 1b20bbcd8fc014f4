"""Opening a bundle to predict with it: verified, on a backend, and checked against golden rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts.backends import Model, open_backend
from artifacts.bound import LARGEST
from artifacts.bundle import Bundle, Golden
from artifacts.cells import check_columns, encode_columns
from artifacts.decision import decide
from artifacts.devices import Device, resolve_device
from artifacts.errors import DataError, ParityError
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from artifacts.parity import Comparison, one_answer, self_check
from artifacts.pixels import check_pixels, decode_images
from artifacts.references import open_reference, store_path

# Enough for every width of vector instruction to meet its tail, few enough to cost milliseconds.
_ONE_ANSWER_ROWS = 64


@dataclass(frozen=True)
class Predictions:
    """Answers for N rows: index int64 [N]; logits and probabilities float32 [N, K].

    index is the most probable label, or for two labels what the bundle's threshold says.
    """

    labels: tuple[str, ...]
    index: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray

    @property
    def label(self) -> list[str]:
        """The answered label of each row."""
        return [self.labels[index] for index in self.index]


@dataclass(frozen=True)
class Predictor:
    """A bundle that has shown on this machine that it answers as it did when it was released.

    threads: of ONNX Runtime's on CPU; with one an answer is proved not to depend on its batch.
    """

    bundle: Bundle
    golden: Golden
    backend: str
    device: Device
    checked: Comparison
    model: Model
    threads: int = 1

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def run(self, raw: np.ndarray, batch_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, float32 [N, K], of raw input [N, *input shape], N >= 0.

        At most batch_size rows at a time go through the model, and never more than the
        manifest's max_batch_size: the batch sizes that the parity gate has proved.
        """
        if len(raw) == 0:
            empty = np.empty((0, len(self.manifest.labels)), dtype=np.float32)
            return empty, empty.copy()
        answers = list(self.batches(raw, batch_size))
        if len(answers) == 1:
            return answers[0]
        logits, probabilities = zip(*answers, strict=True)
        return np.concatenate(logits), np.concatenate(probabilities)

    def batches(
        self, raw: np.ndarray, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `run` returns, of one batch after the other."""
        size = min(batch_size or self.manifest.max_batch_size, self.manifest.max_batch_size)
        for start in range(0, len(raw), size):
            yield self.model(raw[start : start + size])

    def predict(
        self, rows: np.ndarray | Sequence[bytes] | Mapping[str, Sequence[float | str | None]]
    ) -> Predictions:
        """Predict what is not encoded yet.

        rows: for images, encoded pictures, or uint8 at the model's own size, [N, channels, height,
        width], for one channel also [N, height, width]; for tables, a column of cells for each
        name. Raises DataError naming the first bad row.
        """
        spec = self.manifest.input
        bad: dict[int, str] = {}
        if isinstance(spec, ImageInput):
            if isinstance(rows, Mapping):
                raise DataError("expected encoded pictures or a uint8 array, found columns")
            if isinstance(rows, np.ndarray):
                raw = check_pixels(rows, spec)
            else:
                raw, bad = decode_images(rows, spec)
        else:
            if not isinstance(rows, Mapping):
                raise DataError(f"expected columns by name, found {type(rows).__name__}")
            check_columns(list(rows), spec, extra_allowed=True)
            raw, bad = encode_columns([rows[column.name] for column in spec.columns], spec)
        if bad:
            row = min(bad)
            raise DataError(f"row {row}: {bad[row]}")
        logits, probabilities = self.run(raw)
        index = decide(probabilities, self.manifest.threshold)
        return Predictions(self.manifest.labels, index, logits, probabilities)


def open_bundle(
    reference: str, *, backend: str = "onnx", device: str = "auto", threads: int = 1
) -> Predictor:
    """Open a bundle by path, NAME@VERSION or NAME, and prove it before it is used.

    Every file's digest is verified, then the golden rows are replayed on this very backend and
    device; with ONNX Runtime on CPU their answers must also be bit for bit alike alone and in a
    batch. Raises BundleError, ParityError or DeviceError.
    """
    return open_predictor(
        open_reference(store_path(), reference),
        backend=backend,
        device=resolve_device(device),
        threads=threads,
    )


def open_predictor(bundle: Bundle, *, backend: str, device: Device, threads: int) -> Predictor:
    """`open_bundle` for a bundle that is read already."""
    golden = bundle.golden()
    model = open_backend(bundle, backend, device, threads)
    size = bundle.manifest.max_batch_size
    try:
        checked = self_check(model, golden, device, size)
        if backend == "onnx" and device == "cuda":
            # Small batches may be answered by recorded graphs.
            arrays = (golden.raw, golden.logits, golden.probabilities, golden.labels)
            few = Golden(*(array[:LARGEST] for array in arrays))
            for size in (1, 7, LARGEST):
                self_check(model, few, device, size)
        if backend == "onnx" and device == "cpu" and threads == 1:
            rows = golden.raw[:_ONE_ANSWER_ROWS]
            difference = one_answer(model, rows, (len(rows), 1, 7))
            if difference:
                raise ParityError(f"answers depend on the batch: {difference}")
    except ParityError as error:
        raise ParityError(f"{bundle.manifest.reference} on {backend}: {error}") from error
    return Predictor(bundle, golden, backend, device, checked, model, threads)
