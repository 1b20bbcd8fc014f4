"""The Open Inference Protocol's routes in the OpenAPI document, with this model's names."""

from __future__ import annotations

from typing import Any

from artifacts.bundle import Golden
from artifacts.inputs import ImageInput
from artifacts.manifest import Manifest
from serving.oip_documents import model_metadata
from serving.oip_plan import OUTPUTS

_JSON = "application/json"
# An example of more numbers than this helps nobody to read the document.
_LONGEST_EXAMPLE = 1024


def oip_paths(
    manifest: Manifest, golden: Golden, refusals: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """OpenAPI paths below /v2. refusals: the responses of any prediction that is not answered."""
    model = f"/v2/models/{manifest.name}"
    error = refusals["400"]
    paths: dict[str, dict[str, Any]] = {}
    for path, summary in {
        "/v2": "The server's name, version and extensions",
        "/v2/health/live": "The process is alive",
        "/v2/health/ready": "The model was checked and answers",
        model: "The model's inputs and outputs",
        f"{model}/ready": "The model was checked and answers",
        f"{model}/config": "The model's configuration, in Triton's form",
        f"{model}/stats": "What was answered so far, in Triton's form",
    }.items():
        responses: dict[str, Any] = {"200": _answer(summary, {"type": "object"})}
        if path.endswith("ready"):
            responses["503"] = {**error, "description": "The service stops"}
        paths[path] = {"get": _operation(summary, responses)}
    paths["/v2/repository/index"] = {
        "post": {
            **_operation(
                "The model, as a list of one",
                {
                    "200": _answer("The list", {"type": "array", "items": {"type": "object"}}),
                    **{status: refusals[status] for status in ("400", "413")},
                },
            ),
            "requestBody": _body(
                {"type": "object", "properties": {"ready": {"type": "boolean"}}}, {}
            ),
        }
    }
    paths[f"{model}/infer"] = {
        "post": {
            **_operation(
                "Predict rows; with tensors as binary data too, see the protocol",
                {"200": _answer("The outputs that were asked for", _response()), **refusals},
            ),
            "requestBody": _body(_request(manifest), _example(manifest, golden)),
        }
    }
    return paths


def _operation(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"tags": ["Open Inference Protocol"], "summary": summary, "responses": responses}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example:
        content["example"] = example
    return {"required": True, "content": {_JSON: content}}


def _request(manifest: Manifest) -> dict[str, Any]:
    inputs = model_metadata(manifest, "")["inputs"]
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string", "enum": [given["name"] for given in inputs]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "datatype": {"type": "string", "example": inputs[0]["datatype"]},
            "data": {"type": "array", "items": {}},
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "minItems": len(inputs), "items": tensor},
            "outputs": {"type": "array", "items": output},
        },
    }


def _response() -> dict[str, Any]:
    text = {"type": "string"}
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string", "enum": list(OUTPUTS)},
            "datatype": text,
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array", "items": {}},
        },
    }
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": text,
            "model_name": text,
            "model_version": text,
            "outputs": {"type": "array", "items": tensor},
        },
    }


def _example(manifest: Manifest, golden: Golden) -> dict[str, Any]:
    """The first golden row, where it is short and all numbers."""
    spec, row = manifest.input, golden.raw[0]
    if row.size > _LONGEST_EXAMPLE:
        return {}
    if isinstance(spec, ImageInput):
        data = row.ravel().tolist()
        tensor = {"name": "images", "shape": [1, *row.shape], "datatype": "UINT8", "data": data}
        return {"inputs": [tensor]}
    if not spec.only_numbers:
        return {}
    return {
        "inputs": [
            # NaN stands for a missing value, null in JSON.
            {
                "name": column.name,
                "shape": [1],
                "datatype": "FP64",
                "data": [value if value == value else None],
            }
            for column, value in zip(spec.columns, row.tolist(), strict=True)
        ]
    }
