"""Offline scoring as one writes it in a notebook: pandas, numpy, ONNX Runtime with its defaults.

    python scoring_pandas.py model.onnx labels.json pixels.parquet answers.parquet

No check, nothing to go on from after a kill, all in memory.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd

BATCH = 1024


def main(model: str, labels_file: str, pixels: str, answers: str) -> None:
    """Parquet with a column of pixels, 784 bytes each -> Parquet with an answer for each row."""
    labels = np.array(json.loads(Path(labels_file).read_text()))
    session = onnxruntime.InferenceSession(model)
    frame = pd.read_parquet(pixels, columns=["pixels"])
    images = np.stack([np.frombuffer(row, np.uint8) for row in frame["pixels"]])
    images = images.reshape(-1, 1, 28, 28)
    found = [
        session.run(["probabilities"], {"images": images[start : start + BATCH]})[0]
        for start in range(0, len(images), BATCH)
    ]
    probabilities = np.concatenate(found)
    index = probabilities.argmax(axis=1)
    result = pd.DataFrame(
        {
            "row": np.arange(len(index)),
            "label": labels[index],
            "index": index,
            "probability": probabilities.max(axis=1),
            **{f"probability_{name}": probabilities[:, k] for k, name in enumerate(labels)},
        }
    )
    result.to_parquet(answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
