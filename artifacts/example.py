"""A real row of the bundle as a request, for documents, the report and the page."""

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


def curl_line(manifest: Manifest, golden: Golden, url: str, *, with_token: bool = False) -> str:
    """A `curl` command that predicts the first golden row; $TOKEN stands for the caller's."""
    token = """ -H "Authorization: Bearer $TOKEN\"""" if with_token else ""
    body = json.dumps({"instances": [example_instance(manifest, golden)]})
    kind = "-H 'Content-Type: application/json'"
    line = f"curl {url}/predict{token} {kind} -d {shlex.quote(body)}"
    if isinstance(manifest.input, ImageInput) and len(line) > _LONGEST_LINE:
        return f"curl {url}/predict/image{token} --data-binary @PICTURE.jpg"
    return line
