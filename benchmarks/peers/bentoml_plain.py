"""BentoML as its guide to adaptive batching writes a service: a batchable API of arrays, as JSON.

MODEL=model.onnx WORKERS=N bentoml serve bentoml_plain:Plain
"""

import os
from typing import Annotated

import bentoml
import numpy as np
import onnxruntime
from bentoml.validators import DType


@bentoml.service(
    workers=int(os.environ.get("WORKERS", "1")), logging={"access": {"enabled": False}}
)
class Plain:
    """One model behind one batchable API."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    @bentoml.api(batchable=True)
    def predict(self, images: Annotated[np.ndarray, DType("uint8")]) -> np.ndarray:
        """uint8 [N, 1, 28, 28] -> float32 [N, 10]."""
        (probabilities,) = self.session.run(["probabilities"], {"images": images})
        return probabilities
