"""LitServe with its batching: decode, predict, encode, JSON both ways.

MODEL=model.onnx WORKERS=N PORT=P python litserve_batched.py

A batch waits 1 ms for more: the 50 ms of LitServe's guide would cost a lone caller 50 ms a request.
"""

import os

import litserve
import numpy as np
import onnxruntime


class Classifier(litserve.LitAPI):
    """One model; a request is one picture."""

    def setup(self, device: str) -> None:
        """Open the model, in each worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    def decode_request(self, request: dict) -> np.ndarray:
        """Uint8 [1, 28, 28]."""
        return np.array(request["image"], dtype=np.uint8)[np.newaxis]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, 1, 28, 28], stacked by LitServe -> float32 [N, 10]."""
        (probabilities,) = self.session.run(["probabilities"], {"images": images})
        return probabilities

    def encode_response(self, probabilities: np.ndarray) -> dict:
        """Of one picture."""
        return {"probabilities": probabilities.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"])
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        generate_client_file=False,
    )
