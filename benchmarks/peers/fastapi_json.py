"""FastAPI with ONNX Runtime, as its tutorial writes a body: a pydantic model, JSON both ways.

    MODEL=model.onnx uvicorn fastapi_json:app --workers N

The route is `async`: at this model's cost FastAPI's threads would only slow it down.
"""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
app = FastAPI()


class Images(BaseModel):
    """Gray pictures, [N][height][width]."""

    instances: list[list[list[int]]]


class Answer(BaseModel):
    """Of each picture, the probability of each label."""

    probabilities: list[list[float]]


@app.post("/predict")
async def predict(images: Images) -> Answer:
    """The model's answer."""
    raw = np.array(images.instances, dtype=np.uint8)[:, np.newaxis]
    (probabilities,) = session.run(["probabilities"], {"images": raw})
    return Answer(probabilities=probabilities.tolist())
