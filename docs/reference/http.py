"""The HTTP routes, from the OpenAPI documents of an image model and of a table model."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.bundle import Golden, read_bundle
from artifacts.cells import encode_columns
from artifacts.inputs import CategoryColumn, Column, TableInput
from docs.reference.words import cell, code, table
from serving.openapi import openapi_document

# One that was released for good, of 8 x 8 digits.
_DIGITS = Path(__file__).parents[2] / "tests/fixtures/released/schema-1-mlp"
_JSON = "application/json"
_REFUSALS = "/predict"


def page() -> str:
    """Each route with its requests, answers and refusals."""
    of = documents()
    lines = [
        "# HTTP",
        "",
        "Each service describes itself at `GET /docs.json`, an OpenAPI document with its own "
        "columns, sizes and labels. This page is made of two such documents: one of a model of "
        "8 x 8 pictures of digits, one of a model of a table with two columns.",
        "",
        'Every error is JSON, `{"error": "..."}`, and names the field or row. Where a service '
        "asks for tokens, a request has the header `Authorization: Bearer TOKEN`; those of health "
        "need none.",
        "",
        "A browser finds a page to try the model on at `GET /`, and the bundle's report at "
        "`GET /report`. What is below `/v2/models/NAME` is also below "
        "`/v2/models/NAME/versions/VERSION`, and is 404 there when another version is served.",
        "",
    ]
    paths = sorted(
        {path for document in of.values() for path in document["paths"]},
        key=lambda path: (not path.startswith("/predict"), path.startswith("/v2"), path),
    )
    for path in paths:
        has = {title: document for title, document in of.items() if path in document["paths"]}
        for method in next(iter(has.values()))["paths"][path]:
            lines += _route(path, method, has)
    rows = [[status, cell(text)] for status, text in _refusals(next(iter(of.values()))).items()]
    return "\n".join([*lines, "## Refusals", "", *table(["status", "because"], rows)])


def documents() -> dict[str, dict[str, Any]]:
    """The OpenAPI documents of an image model and of a table model, NAME@VERSION both."""
    bundle = read_bundle(_DIGITS)
    image = bundle.manifest.model_copy(update={"name": "NAME", "version": "VERSION"})
    spec = TableInput(
        columns=(
            Column(name="age", low=18, high=94, typical=41),
            CategoryColumn(name="plan", categories=("basic", "plus"), typical="plus"),
        )
    )
    table_manifest = image.model_copy(
        update={"task": "binary", "labels": ("no", "yes"), "input": spec}
    )
    raw, _ = encode_columns([[41], ["plus"]], spec)
    answer = np.zeros((1, 2), dtype=np.float32)
    row = Golden(raw, answer, answer, np.zeros(1, dtype=np.int64))
    return {
        "Pictures": openapi_document(image, bundle.golden()),
        "A table": openapi_document(table_manifest, row),
    }


def _route(path: str, method: str, of: dict[str, dict[str, Any]]) -> list[str]:
    document = next(iter(of.values()))
    operation = document["paths"][path][method]
    lines = [f"## {method.upper()} {path}", "", f"{operation['summary']}.", ""]
    parameters = operation.get("parameters", [])
    if parameters:
        lines += ["In the address:", ""]
        lines += table(
            ["parameter", "takes", ""],
            [
                [
                    code(one["name"]),
                    _kind(one["schema"], document),
                    cell(one["schema"].get("description", one.get("description", ""))),
                ]
                for one in parameters
            ],
        )
    if "requestBody" in operation:
        lines += _body(path, method, of)
    lines += _answer(operation["responses"]["200"], document)
    known = _refusals(document).items()
    refused = _refusals(document, path, method).items()
    if refused and refused <= known:
        statuses = ", ".join(status for status, _ in refused)
        lines += [f"Refused with {statuses}: see [refusals](#refusals).", ""]
    elif refused:
        lines += [f"Refused with {status}: {text.lower()}." for status, text in refused] + [""]
    return lines


def _refusals(
    document: dict[str, Any], path: str = _REFUSALS, method: str = "post"
) -> dict[str, str]:
    responses = document["paths"][path][method]["responses"]
    return {
        status: response["description"] for status, response in responses.items() if status != "200"
    }


def _answer(response: dict[str, Any], document: dict[str, Any]) -> list[str]:
    schema = _resolved(response.get("content", {}).get(_JSON, {}).get("schema", {}), document)
    lines = [
        f"Answered with 200: {response['description'][0].lower()}{response['description'][1:]}."
    ]
    return [*lines, "", *_fields(schema, document)]


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """A table of an object's fields, and of the objects in its lists."""
    required = schema.get("required", [])
    rows = []
    inner: list[str] = []
    for name, value in schema.get("properties", {}).items():
        value = _resolved(value, document)
        said = value.get("description", "")
        rows.append(
            [
                code(name),
                _kind(value, document),
                cell(f"Required. {said}" if name in required else said),
            ]
        )
        items = _resolved(value.get("items", {}), document)
        if items.get("description") is None and name == "predictions":
            inner = ["Each of the `predictions`:", "", *_fields(items, document)]
    return [*table(["field", "is", ""], rows), *inner] if rows else []


def _body(path: str, method: str, of: dict[str, dict[str, Any]]) -> list[str]:
    """The request of each kind of model; what both take alike, once."""
    found: dict[str, list[str]] = {}
    for title, document in of.items():
        content = document["paths"][path][method]["requestBody"]["content"]
        lines: list[str] = []
        raw = [
            kind for kind, body in content.items() if "properties" not in _schema(body, document)
        ]
        if raw:
            lines += [f"The bytes of one picture as {', '.join(map(code, raw))}; or:", ""]
        for kind, body in content.items():
            if kind in raw:
                continue
            lines += [f"{code(kind)}:", "", *_fields(_schema(body, document), document)]
            if body.get("example"):
                text = json.dumps(body["example"])
                lines += ["```json", *textwrap.wrap(text, 88, break_long_words=False), "```", ""]
        found[title] = lines
    if len({tuple(lines) for lines in found.values()}) == 1:
        return next(iter(found.values()))
    return [line for title, lines in found.items() for line in (f"**{title}.**", "", *lines)]


def _schema(body: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    return _resolved(body.get("schema", {}), document)


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    return found


def _kind(schema: dict[str, Any], document: dict[str, Any]) -> str:
    schema = _resolved(schema, document)
    choices = schema.get("oneOf", schema.get("anyOf"))
    if choices:
        return " or ".join(dict.fromkeys(_kind(choice, document) for choice in choices))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        inner = _kind(schema.get("items", {}), document)
        sizes = {schema.get("minItems"), schema.get("maxItems")}
        size = f"{sizes.pop()} x " if len(sizes) == 1 and None not in sizes else "list of "
        return f"{size}{inner}" if inner else "list"
    if kind == "object":
        names = ", ".join(code(name) for name in schema.get("properties", {}))
        return f"object of {names}" if names else "object"
    bounds = [
        f"{sign} {schema[bound]}"
        for bound, sign in (("minimum", "≥"), ("maximum", "≤"))
        if bound in schema
    ]
    name = {"integer": "whole number", "string": "text"}.get(kind, kind)
    return " ".join([str(schema.get("format", name)), ", ".join(bounds)]).strip()
