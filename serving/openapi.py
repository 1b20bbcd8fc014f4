"""`/docs.json`: the OpenAPI document with this model's real columns, sizes and labels."""

from __future__ import annotations

from typing import Any

from artifacts.bundle import Golden
from artifacts.cells import ColumnSpec
from artifacts.example import example_instance
from artifacts.inputs import BooleanColumn, Column, DateColumn, ImageInput
from artifacts.manifest import Manifest
from serving.oip_openapi import oip_paths

_JSON = "application/json"


def openapi_document(manifest: Manifest, golden: Golden) -> dict[str, Any]:
    """OpenAPI 3.0.2, at /docs.json."""
    paths: dict[str, Any] = {
        "/predict": {"post": _predict(manifest, golden)},
        "/model": {
            "get": {
                "tags": ["Service APIs"],
                "summary": "The public part of the manifest",
                "responses": {"200": {"description": "The manifest"}},
            }
        },
    }
    if isinstance(manifest.input, ImageInput):
        paths["/predict/image"] = {"post": _predict_image(manifest)}
    paths.update(oip_paths(manifest, golden, _refusals()))
    for route, summary in {
        "/livez": "The process is alive",
        "/readyz": "The model was checked and answers",
        "/metrics": "Prometheus metrics",
    }.items():
        paths[route] = {
            "get": {
                "tags": ["Infrastructure"],
                "summary": summary,
                "responses": {"200": {"description": "Yes"}},
            }
        }
    return {
        "openapi": "3.0.2",
        "info": {
            "title": manifest.reference,
            "version": manifest.version,
            "description": f"A {manifest.task} classifier: {', '.join(manifest.labels)}.",
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {
            "schemas": {
                "Instance": _instance_schema(manifest),
                "Predictions": _predictions_schema(manifest),
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                },
            }
        },
    }


def _predict(manifest: Manifest, golden: Golden) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["instances"],
        "additionalProperties": False,
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/components/schemas/Instance"},
            },
            "top_k": _top_k(manifest),
        },
    }
    example = {"instances": [example_instance(manifest, golden)]}
    return {
        "tags": ["Service APIs"],
        "summary": "Predict rows",
        "operationId": "predict",
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": schema, "example": example}},
        },
        "responses": _responses(),
    }


def _predict_image(manifest: Manifest) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    files = {
        "type": "object",
        "required": ["files"],
        "properties": {"files": {"type": "array", "items": binary}},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": files}}
    content.update({f"image/{kind}": {"schema": binary} for kind in ("png", "jpeg", "webp")})
    return {
        "tags": ["Service APIs"],
        "summary": "Predict encoded pictures",
        "operationId": "predict_image",
        "parameters": [{"name": "top_k", "in": "query", "schema": _top_k(manifest)}],
        "requestBody": {"required": True, "content": content},
        "responses": _responses(),
    }


def _responses() -> dict[str, Any]:
    return {
        "200": _answer("One prediction for each instance, in their order", "Predictions"),
        **_refusals(),
    }


def _refusals() -> dict[str, Any]:
    """What any request for a prediction may be answered with instead."""
    return {
        status: _answer(description, "Error")
        for status, description in {
            "400": "The request does not fit the model; the message names the place",
            "401": "The service asks for a token, and this request has none of its tokens",
            "408": "The request came too slowly",
            "413": "The body is too large",
            "415": "A Content-Encoding other than gzip and deflate",
            "431": "The head is too large",
            "503": "Overloaded, or stopping; see Retry-After",
            "504": "There was no answer in time",
        }.items()
    }


def _answer(description: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": description, "content": {_JSON: {"schema": reference}}}


def _top_k(manifest: Manifest) -> dict[str, Any]:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": len(manifest.labels),
        "description": "Answer only the K largest probabilities.",
    }


def _instance_schema(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.input
    if not isinstance(spec, ImageInput):
        return {
            "type": "object",
            "required": [column.name for column in spec.columns],
            "additionalProperties": False,
            "properties": {column.name: _cell_schema(column) for column in spec.columns},
        }
    nested: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 255}
    sizes = [spec.width, spec.height] if spec.channels == 1 else [3, spec.width, spec.height]
    for size in sizes:
        nested = {"type": "array", "minItems": size, "maxItems": size, "items": nested}
    encoded = {
        "type": "object",
        "required": ["b64"],
        "additionalProperties": False,
        "properties": {"b64": {"type": "string", "description": "base64 of a PNG, JPEG or WebP"}},
    }
    return {"oneOf": [encoded, nested]}


def _cell_schema(column: ColumnSpec) -> dict[str, Any]:
    nullable = {"nullable": column.missing == "fill"}
    if isinstance(column, Column):
        kinds: list[dict[str, Any]] = [{"type": "number"}]
        about = f"in training from {column.low:g} to {column.high:g}"
    elif isinstance(column, BooleanColumn):
        texts = {"type": "string", "enum": ["true", "false"]}
        kinds = [{"type": "boolean"}, {"type": "integer", "enum": [0, 1]}, texts]
        about = "true or false"
    elif isinstance(column, DateColumn):
        kinds = [{"type": "string"}]
        about = f"ISO 8601, without a zone UTC; in training from {column.low} to {column.high}"
    else:
        # No enum: another text is answered too, as the rare categories of training are.
        kinds = [{"type": kind} for kind in ("string", "number", "boolean")]
        shown = ", ".join(column.categories[:50])
        more = f" and {len(column.categories) - 50} more" if len(column.categories) > 50 else ""
        about = f"in training: {shown}{more}"
    # In OpenAPI 3.0 `nullable` belongs to a `type`.
    kinds = [{**kind, **nullable} for kind in kinds]
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {**schema, "description": about, "example": column.typical}


def _predictions_schema(manifest: Manifest) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    prediction = {
        "type": "object",
        "properties": {
            "label": {
                "type": "string",
                "enum": list(manifest.labels),
                "description": _decision(manifest),
            },
            "index": {"type": "integer", "minimum": 0, "maximum": len(manifest.labels) - 1},
            "probability": {**probability, "description": "Of `label`."},
            "probabilities": {"type": "object", "additionalProperties": probability},
        },
    }
    return {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": prediction},
            "model": {"type": "string", "example": manifest.reference},
        },
    }


def _decision(manifest: Manifest) -> str:
    if manifest.threshold == 0.5:
        return "The most probable label."
    return (
        f"{manifest.labels[1]} where its probability is above {manifest.threshold:g}, else "
        f"{manifest.labels[0]}; `top_k` orders by probability alone."
    )
