"""A real row of the bundle as a request, for documents and the `curl` line at start."""

from __future__ import annotations

import base64
import json
import shlex
from typing import Any

from artifacts.bundle import Golden
from artifacts.cells import decode_row
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from artifacts.pixels import encode_png

_LONGEST_LINE = 4000


def example_instance(manifest: Manifest, golden: Golden) -> Any:
    """The first golden row as an instance of POST /predict."""
    spec = manifest.input
    if isinstance(spec, ImageInput):
        return {"b64": base64.b64encode(encode_png(golden.raw[0])).decode()}
    return decode_row(golden.raw[0], spec)


def curl_line(manifest: Manifest, golden: Golden, url: str) -> str:
    """A `curl` command that predicts the first golden row."""
    body = json.dumps({"instances": [example_instance(manifest, golden)]})
    line = f"curl {url}/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    if len(line) > _LONGEST_LINE:
        return f"curl {url}/predict/image --data-binary @PICTURE.jpg"
    return line
