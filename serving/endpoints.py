"""The three ways to ask for a prediction: what each makes of a request, and of the answer.

An endpoint knows one model. It decodes a request's body to the model's raw input, and encodes
logits and probabilities to a reply; what lies between is the same for all (`serving.worker`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import parse_qs

import numpy as np

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from artifacts.pixels import claimed_size, decode_images, pixels_made
from serving.compression import compress, inflate
from serving.exchange import Body, Exchange, Reply
from serving.oip import InferenceProtocol, InferRequest
from serving.wire import RequestDecoder

# A picture of so few pixels is decoded in 50 microseconds, if its file holds nothing else.
_SMALL_PIXELS = 64 * 64
_SMALL_FILE_BYTES = 4096
# Parsing a larger body takes longer than handing it to a thread.
_LARGE_BYTES = 64 * 1024
_JSON = b"content-type: application/json\r\n"
_BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"

# What an endpoint remembers of a request until its answer is there.
Memory = Any


class Endpoint(Protocol):
    """One route of one model. route: its name in /metrics."""

    route: str

    def takes_long(self, exchange: Exchange) -> bool:
        """Whether decoding belongs into a thread: it may take more than a millisecond."""

    def decode(self, exchange: Exchange) -> tuple[np.ndarray, Memory]:
        """Raw input [N, ...], N >= 1; raises DataError or HTTPException."""

    def encode(self, memory: Memory, logits: np.ndarray, probabilities: np.ndarray) -> Reply:
        """The answer to what decode returned beside the input."""


def body_of(exchange: Exchange, max_bytes: int) -> bytes:
    """The request's body, inflated where it is compressed."""
    encoding = exchange.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    body = bytes(exchange.body)
    return body if encoding in ("", "identity") else inflate(body, encoding, max_bytes)


class Predict:
    """POST /predict: `{"instances": [...], "top_k": K}`."""

    route = "/predict"

    def __init__(
        self,
        manifest: Manifest,
        decoder: RequestDecoder,
        encode: Callable[[np.ndarray, int | None], bytes],
        max_body_bytes: int,
    ) -> None:
        self._decoder = decoder
        self._encode = encode
        self._max_body_bytes = max_body_bytes
        self._takes_pictures = isinstance(manifest.input, ImageInput)

    def takes_long(self, exchange: Exchange) -> bool:
        """A few bytes can hold a picture that takes a second to decode."""
        if len(exchange.body) > _LARGE_BYTES or b"content-encoding" in exchange.headers:
            return True
        body = bytes(exchange.body)
        # Pixels as numbers have no strings; with an escape the key may be written otherwise.
        return self._takes_pictures and (b'"b64"' in body or b"\\" in body)

    def decode(self, exchange: Exchange) -> tuple[np.ndarray, int | None]:
        """See `Endpoint`; remembers top_k."""
        request = self._decoder.decode(body_of(exchange, self._max_body_bytes))
        return request.raw, request.top_k

    def encode(self, memory: int | None, logits: np.ndarray, probabilities: np.ndarray) -> Reply:
        """See `Endpoint`."""
        return Reply(200, self._encode(probabilities, memory))


class PredictImage:
    """POST /predict/image: encoded pictures, one as the body or several as files; `?top_k=K`."""

    route = "/predict/image"

    def __init__(
        self,
        manifest: Manifest,
        encode: Callable[[np.ndarray, int | None], bytes],
        *,
        max_rows: int,
        max_body_bytes: int,
        max_pixels: int,
    ) -> None:
        assert isinstance(manifest.input, ImageInput)
        self._spec = manifest.input
        self._classes = len(manifest.labels)
        self._encode = encode
        self._max_rows = max_rows
        self._max_body_bytes = max_body_bytes
        self._max_pixels = max_pixels

    def takes_long(self, exchange: Exchange) -> bool:
        """A small picture takes as long as handing it to a thread, any other longer."""
        if exchange.files is not None or len(exchange.body) > _SMALL_FILE_BYTES:
            return True
        size = claimed_size(bytes(exchange.body))
        if size is None or b"content-encoding" in exchange.headers:
            return True
        return pixels_made(size, self._spec) > _SMALL_PIXELS

    def decode(self, exchange: Exchange) -> tuple[np.ndarray, int | None]:
        """See `Endpoint`; remembers top_k."""
        top_k = query_top_k(exchange.query, self._classes)
        pictures = exchange.files
        if pictures is None:
            pictures = [("the body", body_of(exchange, self._max_body_bytes))]
        if len(pictures) > self._max_rows:
            raise DataError(f"files: expected at most {self._max_rows}, found {len(pictures)}")
        raw, bad = decode_images(
            [data for _, data in pictures],
            self._spec,
            max_pixels=self._max_pixels,
            max_total_pixels=self._max_pixels,
        )
        for position, reason in bad.items():
            raise DataError(f"{pictures[position][0]}: {reason}")
        return raw, top_k

    def encode(self, memory: int | None, logits: np.ndarray, probabilities: np.ndarray) -> Reply:
        """See `Endpoint`."""
        return Reply(200, self._encode(probabilities, memory))


class Infer:
    """POST /v2/models/NAME[/versions/VERSION]/infer."""

    route = "/v2/infer"

    def __init__(
        self, manifest: Manifest, protocol: InferenceProtocol, max_body_bytes: int
    ) -> None:
        self._protocol = protocol
        self._max_body_bytes = max_body_bytes
        self._takes_pictures = isinstance(manifest.input, ImageInput)

    def takes_long(self, exchange: Exchange) -> bool:
        """Pixels as a binary tensor are taken as they are; long JSON and cells are not."""
        if b"content-encoding" in exchange.headers:
            return True
        if len(exchange.body) <= _LARGE_BYTES:
            return False
        length = exchange.headers.get(b"inference-header-content-length", b"")
        is_short = re.fullmatch(rb"[0-9]{1,5}", length) and int(length) <= _LARGE_BYTES
        return not (is_short and self._takes_pictures)

    def decode(self, exchange: Exchange) -> tuple[np.ndarray, tuple[InferRequest, bytes]]:
        """See `Endpoint`; remembers the request and the encodings that its caller takes."""
        body: Body
        length = exchange.headers.get(b"inference-header-content-length")
        if length is not None and not re.fullmatch(rb"[0-9]{1,12}", length):
            raise DataError(
                "Inference-Header-Content-Length: expected a whole number of bytes, "
                f"found {length.decode('latin-1')!r}"
            )
        if length is None or b"content-encoding" in exchange.headers:
            body = body_of(exchange, self._max_body_bytes)
        else:
            # Tensors are read where they lie.
            body = exchange.body
        request = self._protocol.decode(body, None if length is None else int(length))
        return request.raw, (request, exchange.headers.get(b"accept-encoding", b""))

    def encode(
        self,
        memory: tuple[InferRequest, bytes],
        logits: np.ndarray,
        probabilities: np.ndarray,
    ) -> Reply:
        """See `Endpoint`."""
        request, accepted = memory
        body, header_length = self._protocol.encode(request, logits, probabilities)
        head = _JSON if header_length is None else _BINARY % header_length
        if accepted:
            body, encoding = compress(body, accepted)
            if encoding is not None:
                head += b"content-encoding: %s\r\n" % encoding
        return Reply(200, body, head)


def query_top_k(query: str, classes: int) -> int | None:
    """`top_k` of a query string. Raises DataError for what is no number from 1 to classes."""
    texts = parse_qs(query, keep_blank_values=True).get("top_k")
    if texts is None:
        return None
    text = texts[-1]
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= classes:
        raise DataError(f"top_k: expected a whole number from 1 to {classes}, found {text!r}")
    return int(text)
