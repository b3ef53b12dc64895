"""Answers in the shape that a JSON Schema asks for. Touches: nothing.

A model that takes `response_format` is held to the schema; one that does not reads it in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["choices_of", "hint", "schema_of", "shaped"]

_CUE = "JSON Schema"


def schema_of(response_format: Any, system: str) -> Mapping[str, Any] | None:
    """The schema that a request names, in its field or in its system message; None for none."""
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_schema":
        named = response_format.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}
    at = system.find(_CUE)
    start = system.find("{", at) if at >= 0 else -1
    if start < 0:
        return None
    try:
        schema, _end = json.JSONDecoder().raw_decode(system, start)
    except (ValueError, RecursionError):
        return None
    return schema if isinstance(schema, Mapping) else None


def hint(schema: Mapping[str, Any]) -> str:
    """Words in which `answers` finds the labels that a schema allows."""
    choices = choices_of(schema)
    return f"labels: {'|'.join(choices)}\n" if choices else ""


def choices_of(schema: Mapping[str, Any] | None) -> list[str]:
    """The first list of texts among which a schema lets choose; empty when there is none."""
    for of in _parts(schema):
        choices = of.get("enum")
        if isinstance(choices, list) and all(isinstance(one, str) for one in choices):
            return choices
    return []


def shaped(said: str, schema: Mapping[str, Any]) -> str:
    """What was said as JSON of the schema: in the first place that takes it, the rest made up."""
    try:
        value = json.loads(said)
        said = str(next(iter(value.values()))) if isinstance(value, dict) and value else said
    except ValueError:
        pass
    left = [said]
    value = _value(schema, schema, left, 0)
    return json.dumps(value, ensure_ascii=False)


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, Mapping):
        yield schema
        for inside in schema.values():
            yield from _parts(inside)
    elif isinstance(schema, list):
        for inside in schema:
            yield from _parts(inside)


def _value(schema: Any, root: Mapping[str, Any], left: list[str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > 8:
        return None
    if isinstance(ref := schema.get("$ref"), str):
        at: Any = root
        for part in ref.removeprefix("#/").split("/"):
            at = at.get(part) if isinstance(at, Mapping) else None
        return _value(at, root, left, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if isinstance(ways := schema.get(several), list) and ways:
            return _value(ways[0], root, left, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(choices := schema.get("enum"), list) and choices:
        if left and left[0] in choices:
            return left.pop()
        return choices[len(root) % len(choices)]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties")
        inside = properties.items() if isinstance(properties, Mapping) else ()
        return {name: _value(of, root, left, depth + 1) for name, of in inside}
    if kind == "array":
        return [_value(schema.get("items"), root, left, depth + 1)]
    if kind in ("integer", "number"):
        try:
            number = float(left[0]) if left else float(schema.get("minimum", 1))
        except ValueError:
            return schema.get("minimum", 1)
        left.clear()
        return int(number) if kind == "integer" else number
    if kind == "boolean":
        return bool(len(left))
    if kind == "null":
        return None
    return left.pop() if left else "made up"
