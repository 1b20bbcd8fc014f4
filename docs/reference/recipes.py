"""Every key of a recipe with its type, range, default and meaning, from the recipe's own models."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from artifacts import configs
from docs.reference.words import cell, code, field_words, table
from training.recipe import Recipe, builtin_recipes
from training.tuning.config import Choices, Range

_NETWORKS: list[type[BaseModel]] = [
    configs.LinearNetwork,
    configs.MlpNetwork,
    configs.TableNetwork,
    configs.CnnNetwork,
    configs.ResnetNetwork,
    configs.TorchvisionNetwork,
    configs.EnsembleNetwork,
]
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def page() -> str:
    """The recipe's sections, then the built-in ones."""
    lines = [
        "# Recipe",
        "",
        "A recipe is a TOML file, or the name of a built-in one. It says everything that decides "
        "what a run makes; the resolved recipe is in the bundle's manifest. An unknown key is an "
        "error. On the command line `--set section.key=value` overrides any key.",
        "",
        *_keys(Recipe, ""),
        *_sections(),
        "## Built-in recipes",
        "",
        *table(
            ["name", ""],
            [[code(name), cell(recipe.summary)] for name, recipe in builtin_recipes().items()],
        ),
    ]
    return "\n".join(lines)


def models() -> dict[str, type[BaseModel]]:
    """Every model of the recipe by the heading under which its keys are."""
    found: dict[str, type[BaseModel]] = {}

    def walk(model: type[BaseModel], place: str) -> None:
        for name, field in model.model_fields.items():
            inner = _model(field.annotation)
            if name == "model" and not place:
                found["[model]"] = BaseModel
                for network in _NETWORKS:
                    found[f'[model] kind = "{_kind(network)}"'] = network
            elif inner is not None:
                key = f"{place}{name}"
                found[f"[{key}]"] = inner
                walk(inner, f"{key}.")

    walk(Recipe, "")
    found["A range in [tune.space]"] = Range
    found["Choices in [tune.space]"] = Choices
    return found


def _sections() -> list[str]:
    lines: list[str] = []
    for heading, model in models().items():
        if model is BaseModel:
            lines += [
                "## [model]",
                "",
                "The network, by its `kind`, `mlp` by default. What a network is made of goes into "
                "the manifest; size of the input and number of labels are the data's.",
                "",
            ]
            continue
        level = "###" if heading.startswith("[model]") else "##"
        title = heading.removeprefix("[model] ")
        lines += [f"{level} {title}", "", *_keys(model, heading)]
    return lines


def _keys(model: type[BaseModel], heading: str) -> list[str]:
    about, words = field_words(model, model.model_fields)
    # "[data]: where rows come from" stands under that heading already.
    section, _, rest = about.partition(": ")
    about = rest[:1].upper() + rest[1:] if section == heading else about
    schema = model.model_json_schema()
    rows = []
    for name, field in model.model_fields.items():
        # Sections have headings of their own.
        if name in ("kind", "model") or _model(field.annotation) is not None:
            continue
        kind, span = _type(schema["properties"][name], schema.get("$defs", {}))
        rows.append([code(name), kind, span, _default(field), cell(words.get(name, ""))])
    lines = [about.replace("<", "&lt;"), ""] if model is not Recipe else []
    return [*lines, *table(["key", "type", "range", "default", ""], rows)]


def _model(annotation: Any) -> type[BaseModel] | None:
    """The one model in an annotation, with None beside it or not."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if kind is not type(None)]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return models[0] if len(models) == 1 else None


def _kind(network: type[BaseModel]) -> str:
    default = network.model_fields["kind"].default
    return "torchvision:NAME" if default is PydanticUndefined else str(default)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        # One that looks at other keys is told in words.
        return "" if field.default_factory_takes_validated_data else code("{}")
    if field.default is None:
        return ""
    default = field.default
    shown = repr(default) if isinstance(default, float) else json.dumps(default, default=str)
    return code("1/255" if default == 1 / 255 else shown)


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[str, str]:
    """A JSON schema's type and range in words, as cells."""
    kinds, spans = [], []
    for one in schema.get("anyOf", schema.get("oneOf", [schema])):
        if "$ref" in one:
            one = definitions[one["$ref"].rsplit("/", 1)[1]]
        if one.get("type") == "null":
            continue
        kind, span = _single(one, definitions)
        if kind not in kinds:
            kinds.append(kind)
        spans.append(span)
    return " or ".join(kinds), ", ".join(dict.fromkeys(filter(None, spans)))


def _many(kind: str) -> str:
    return f"{kind}s" if kind in (*_TYPES.values(), "network") else kind


def _single(schema: dict[str, Any], definitions: dict[str, Any]) -> tuple[str, str]:
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(code(json.dumps(value)) for value in values), ""
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            inner, span = _type(schema["prefixItems"][0], definitions)
            return f"{len(schema['prefixItems'])} {_many(inner)}", span
        inner, span = _type(schema.get("items", {}), definitions)
        least = schema.get("minItems", 0)
        count = f"at least {least} of them" if least else ""
        return f"list of {_many(inner)}" if inner else "list", ", ".join(
            filter(None, [span, count])
        )
    if kind == "object":
        if "properties" in schema:
            title: str = schema["title"]
            return "network" if title.endswith("Network") else title.lower(), ""
        inner, span = _type(schema.get("additionalProperties", {}), definitions)
        return f"table of {_many(inner)}" if inner else "table", span
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    span = ", ".join(
        f"{sign}\u00a0{schema[bound]:g}" if schema[bound] < 2**53 else f"{sign}\u00a02^63"
        for bound, sign in bounds.items()
        if bound in schema
    )
    return _TYPES.get(str(kind), ""), span.replace("<", "&lt;")
