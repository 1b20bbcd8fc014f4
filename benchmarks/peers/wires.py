"""What each server is sent, and the probabilities in what it answers.

A `Work` is a few distinct requests with the right answers, which `check` compares before anything
is timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection

import numpy as np

BINARY = "application/octet-stream"
JSON = "application/json"
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, kw_only=True)
class Work:
    """Requests to one route.

    expected: float32 [number of bodies, rows, labels]. read: from a response's headers (lower
    case) and body to such rows. exact: whether every bit must be right.
    """

    path: str
    headers: dict[str, str]
    bodies: list[bytes]
    expected: np.ndarray
    read: Callable[[Mapping[str, str], bytes], np.ndarray]
    exact: bool = False

    @property
    def rows(self) -> int:
        """In one request."""
        return self.expected.shape[1]


def v2_binary(model: str, images: np.ndarray, expected: np.ndarray) -> Work:
    """Open Inference Protocol with the binary tensor extension; images uint8 [B, rows, C, H, W]."""
    header = {
        "inputs": [
            {
                "name": "images",
                "shape": list(images.shape[1:]),
                "datatype": "UINT8",
                "parameters": {"binary_data_size": images[0].nbytes},
            }
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()

    def read(headers: Mapping[str, str], body: bytes) -> np.ndarray:
        after = body[int(headers[_HEADER_LENGTH.lower()]) :]
        return np.frombuffer(after, dtype=np.float32).reshape(expected.shape[1:])

    return Work(
        path=f"/v2/models/{model}/infer",
        headers={"Content-Type": BINARY, _HEADER_LENGTH: str(len(encoded))},
        bodies=[encoded + rows.tobytes() for rows in images],
        expected=expected,
        read=read,
        exact=True,
    )


def our_json(images: np.ndarray, expected: np.ndarray) -> Work:
    """POST /predict of gray pictures."""
    bodies = [{"instances": rows[:, 0].tolist()} for rows in images]
    return _as_json("/predict", bodies, expected, _our_probabilities, exact=True)


def our_pictures(pictures: Sequence[bytes], expected: np.ndarray) -> Work:
    """POST /predict/image: one encoded picture a request; expected [B, 1, labels]."""
    return Work(
        path="/predict/image",
        headers={"Content-Type": "image/jpeg"},
        bodies=list(pictures),
        expected=expected,
        read=lambda _, body: np.array(_our_probabilities(json.loads(body)), dtype=np.float32),
        exact=True,
    )


def fastapi_json(images: np.ndarray, expected: np.ndarray) -> Work:
    """A pydantic body of gray pictures."""
    bodies = [{"instances": rows[:, 0].tolist()} for rows in images]
    return _as_json("/predict", bodies, expected, lambda answer: answer["probabilities"])


def fastapi_raw(images: np.ndarray, expected: np.ndarray) -> Work:
    """Pixels as they lie in memory."""
    return Work(
        path="/predict",
        headers={"Content-Type": BINARY},
        bodies=[rows.tobytes() for rows in images],
        expected=expected,
        read=lambda _, body: np.frombuffer(body, dtype=np.float32).reshape(expected.shape[1:]),
    )


def bentoml_plain(images: np.ndarray, expected: np.ndarray) -> Work:
    """The argument's name and a nested array; a nested array back."""
    bodies = [{"images": rows.tolist()} for rows in images]
    return _as_json("/predict", bodies, expected, lambda answer: answer)


def litserve_batched(images: np.ndarray, expected: np.ndarray) -> Work:
    """One gray picture."""
    bodies = [{"image": rows[0, 0].tolist()} for rows in images]
    return _as_json("/predict", bodies, expected, lambda answer: [answer["probabilities"]])


def mlserver_v2(model: str, images: np.ndarray, expected: np.ndarray) -> Work:
    """Open Inference Protocol, the tensor's values as a flat list."""
    bodies = [
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": list(rows.shape),
                    "datatype": "UINT8",
                    "data": rows.ravel().tolist(),
                }
            ]
        }
        for rows in images
    ]
    shape = expected.shape[1:]
    return _as_json(
        f"/v2/models/{model}/infer",
        bodies,
        expected,
        lambda answer: np.reshape(answer["outputs"][0]["data"], shape),
    )


def check(name: str, port: int, work: Work) -> list[bytes]:
    """Ask each body once; the right answers' bytes. Ends the program where one is not right."""
    answers = []
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for body, expected in zip(work.bodies, work.expected, strict=True):
        connection.request("POST", work.path, body, work.headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{name}: expected 200, found {response.status}: {answer[:300]!r}")
        headers = {key.lower(): value for key, value in response.getheaders()}
        found = np.asarray(work.read(headers, answer), dtype=np.float32)
        same = np.array_equal(found, expected) if work.exact else np.allclose(found, expected)
        if not same:
            raise SystemExit(f"{name}: expected probabilities {expected}, found {found}")
        answers.append(answer)
    connection.close()
    return answers


def _our_probabilities(answer: dict) -> list[list[float]]:
    return [list(row["probabilities"].values()) for row in answer["predictions"]]


def _as_json(
    path: str,
    bodies: list[dict],
    expected: np.ndarray,
    probabilities: Callable,
    *,
    exact: bool = False,
) -> Work:
    return Work(
        path=path,
        headers={"Content-Type": JSON},
        bodies=[json.dumps(body, separators=(",", ":")).encode() for body in bodies],
        expected=expected,
        read=lambda _, body: np.array(probabilities(json.loads(body)), dtype=np.float32),
        exact=exact,
    )
