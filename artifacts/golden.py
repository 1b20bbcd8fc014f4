"""`golden.npz`: held-out rows with what the trained model answered."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from artifacts.manifest import Manifest


@dataclass(frozen=True)
class Golden:
    """Held-out raw inputs and what the eager model answered.

    raw: [N, *input shape] uint8 or float64; logits, probabilities: [N, K] float32; labels: [N]
    int64 true classes, -1 where there is none (synthetic rows).
    """

    raw: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray

    def encode(self) -> bytes:
        """As the bytes of `golden.npz`."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            raw=self.raw,
            logits=self.logits,
            probabilities=self.probabilities,
            labels=self.labels,
        )
        return buffer.getvalue()


def decode_golden(payload: bytes, manifest: Manifest) -> Golden:
    """`golden.npz`, checked against the manifest of its bundle.

    Raises ValueError unless it holds plain arrays of the right shapes and types, with finite
    answers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            # Stored entries cannot be larger than the file, whose size is verified.
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            golden = Golden(**{key: arrays[key] for key in Golden.__dataclass_fields__})
    # numpy documents ValueError; damaged archives and headers raise the others too.
    except (
        ValueError, KeyError, OSError, EOFError, TypeError, MemoryError, SyntaxError,
        zipfile.BadZipFile, zlib.error, NotImplementedError,
    ) as error:  # fmt: skip
        raise ValueError(f"not a golden file: {error}") from error
    spec = manifest.input
    rows = golden.raw.shape[0] if isinstance(golden.raw, np.ndarray) and golden.raw.ndim else 0
    classes = len(manifest.labels)
    expected = {
        "raw": ((rows, *spec.shape), np.uint8 if spec.kind == "image" else np.float64),
        "logits": ((rows, classes), np.float32),
        "probabilities": ((rows, classes), np.float32),
        "labels": ((rows,), np.int64),
    }
    for key, (shape, dtype) in expected.items():
        array = getattr(golden, key)
        found = (getattr(array, "dtype", None), getattr(array, "shape", None))
        if found != (dtype, shape) or rows == 0:
            raise ValueError(
                f"{key}: expected {np.dtype(dtype)} of shape {shape} with at least "
                f"one row, found {found[0]} {found[1]}"
            )
    if not np.isfinite(golden.logits).all() or not np.isfinite(golden.probabilities).all():
        raise ValueError("expected finite logits and probabilities")
    return golden
