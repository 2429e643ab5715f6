"""GET /v1/models and /v1/models/{id}: every served model and each of its presets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.document import operation
from server.routes.common import json_response, state_of
from server.state import ServedModel, ServerState, listed_ids

router = APIRouter()


@router.get("/v1/models", **operation("List models and presets"))
async def list_models(request: Request) -> Response:
    """Base models first: some clients take the first entry."""
    return json_response({"object": "list", "data": _entries(state_of(request))})


@router.get("/v1/models/{model_id:path}", **operation("Describe one model", 404))
async def retrieve_model(request: Request, model_id: str) -> Response:
    """Ids with slashes resolve, encoded or not."""
    model, _ = state_of(request).find(model_id)
    return json_response(_entry(model, model_id))


def _entries(state: ServerState) -> list[dict[str, Any]]:
    named = [(model, name) for model in state.models for name in listed_ids(model)]
    return [_entry(model, name) for model, name in sorted(named, key=lambda one: one[0].id != one[1])]


def _entry(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "drafthouse",
        "root": model.root or model.id if name == model.id else model.id,
        "parent": None if name == model.id else model.id,
        "max_model_len": model.runner.max_model_len,
    }
