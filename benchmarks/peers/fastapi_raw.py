"""The practical floor: a FastAPI route that takes pixels as raw bytes and does nothing else.

    MODEL=model.onnx uvicorn fastapi_raw:app --workers N

No check, no batching, no limit, no self-check: what Python and HTTP cost around the model.
"""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """uint8 [N, 1, 28, 28] as bytes -> float32 [N, 10] as bytes."""
    raw = np.frombuffer(await request.body(), dtype=np.uint8).reshape(-1, 1, 28, 28)
    (probabilities,) = session.run(["probabilities"], {"images": raw})
    return Response(probabilities.tobytes(), media_type="application/octet-stream")
