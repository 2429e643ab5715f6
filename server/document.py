"""The OpenAPI document: what FastAPI cannot see because bodies are parsed by `schema.parse`.

Knows the shape of routes, not their work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "additionalProperties": False,
        }
    },
}
MEANING = {
    400: "The request is wrong; `param` names the field",
    401: "The API key is missing or wrong",
    404: "No such model, vote or route",
    405: "The route does not know this method",
    413: "The body is too large",
    500: "The server failed",
    503: "Too busy or shutting down; retry after `Retry-After` seconds",
}


def operation(
    summary: str,
    *statuses: int,
    body: type[BaseModel] | None = None,
    success: str | None = "The answer",
    media: str = "application/json",
    stream: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of a route."""
    always = {401, 405, 500, 503} | ({400, 413} if body is not None else set())
    error = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
    responses: dict[str, Any] = {
        str(status): {"description": MEANING[status], "content": error} for status in sorted(always | set(statuses))
    }
    if success is not None:
        schema = {"type": "object"} if media == "application/json" else {"type": "string"}
        content = {media: {"schema": schema}}
        if stream:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        responses["200"] = {"description": success, "content": content}
    extra: dict[str, Any] = {"responses": responses}
    if body is not None:
        reference = {"schema": {"$ref": REFERENCE.format(model=body.__name__)}}
        extra["requestBody"] = {"required": True, "content": {"application/json": reference}}
    return {"summary": summary, "openapi_extra": extra, "response_model": None, "name": summary}


def generation_operation(body: type[BaseModel], summary: str) -> dict[str, Any]:
    return operation(summary, 404, body=body, stream=True)


def install(app: FastAPI, bodies: Iterable[type[BaseModel]], models: list[str]) -> None:
    """Make `app.openapi()` describe the request bodies; `models` are the ids they may name."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=REFERENCE)
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components |= schemas.get("$defs", {}) | {"Error": ERROR_SCHEMA}
            for path in document["paths"].values():
                for one in path.values():
                    _tidy(one["responses"])
            _name_models(document, models)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _tidy(responses: dict[str, Any]) -> None:
    """FastAPI documents a 422 that never occurs, and a 200 in JSON also where there is none."""
    responses.pop("422", None)
    content = responses["200"].get("content", {})
    if not content.get("application/json", {}).get("schema"):
        content.pop("application/json", None)
    if not content:
        responses.pop("200")


def _name_models(document: dict[str, Any], names: list[str]) -> None:
    """Ids that can be asked for, wherever one is expected; all others are a 404."""
    for schema in document["components"]["schemas"].values():
        if (field := schema.get("properties", {}).get("model")) is not None:
            (field if field.get("type") else field["anyOf"][0])["enum"] = names
    for path in document["paths"].values():
        for one in path.values():
            for parameter in one.get("parameters", ()):
                if parameter["name"] == "model_id":
                    parameter["schema"]["enum"] = names
